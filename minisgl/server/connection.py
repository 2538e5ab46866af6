"""One client's connection, until its request's head is there: a bounded number of bytes, in time.

uvicorn's reader of HTTP takes heads of any size and waits for ever; bodies are the guard's concern.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from minisgl.server.errors import ApiError

_MOST: Final = 64 << 10  # bytes of a head, as uvicorn's other reader has it
_REASONS: Final = {400: "Bad Request", 408: "Request Timeout", 431: "Header Fields Too Large"}


class Connection(HttpToolsProtocol):
    """uvicorn's, with bounds. What is no HTTP is answered in OpenAI's form, too."""

    patience: ClassVar[float] = 60.0  # seconds that a head may take
    _late: asyncio.TimerHandle | None = None  # while a head is awaited
    _size = 0  # bytes of it so far

    def connection_made(self, transport: Any) -> None:
        """The first request's head is awaited."""
        super().connection_made(transport)
        self._await_head()

    def on_message_begin(self) -> None:
        """A request begins: the first, or a later one."""
        super().on_message_begin()
        if self._late is None:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        """Read on, and refuse a head that has become too long."""
        if self._late is not None:
            self._size += len(data)
        super().data_received(data)
        if self._late is not None and self._size > _MOST and not self.transport.is_closing():
            self._refuse(ApiError(431, f"the request's head is longer than {_MOST} bytes"))

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._awaits_none()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._awaits_none()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP."""
        self._refuse(ApiError(400, msg))

    def _await_head(self) -> None:
        self._size = 0
        self._late = self.loop.call_later(self.patience, self._too_late)

    def _awaits_none(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._refuse(ApiError(408, f"no request arrived within {self.patience:g} s"))

    def _refuse(self, error: ApiError) -> None:
        self._awaits_none()
        body = error.encoded()
        lines = [f"HTTP/1.1 {error.status} {_REASONS[error.status]}", "connection: close"]
        lines += ["content-type: application/json", f"content-length: {len(body)}", "", ""]
        self.transport.write("\r\n".join(lines).encode() + body)
        self.transport.close()


def connection(seconds: float) -> type[Connection]:
    """The class of connections whose heads may take so long."""

    class Patient(Connection):
        patience = seconds

    return Patient
