"""What goes wrong, in the form that OpenAI's clients read."""

from __future__ import annotations

from typing import Any, Final

import msgspec

_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """An answer with a status other than 200. param: the field that is to blame."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code, self.headers = code, headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON that tells it."""
        server = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, server)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def encoded(self) -> bytes:
        """The same as bytes."""
        return msgspec.json.encode(self.body())


def overloaded(num_open: int, most_waiting: int) -> ApiError:
    """Too many requests wait already."""
    return ApiError(
        429,
        f"the server has {num_open} requests to answer, and at most {most_waiting} may wait; try "
        f"again, or start it with a larger --max-waiting",
        code="rate_limit_exceeded",
        headers={"Retry-After": "1"},
    )


def unavailable(reason: str) -> ApiError:
    """The server cannot answer now."""
    return ApiError(503, reason, code="unavailable")
