"""What every request passes first: its key, and the kind and size of its body."""

from __future__ import annotations

import asyncio
import hmac
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minisgl.server.errors import ApiError
from minisgl.server.options import ServerOptions

_OPEN: Final = "/health"  # who balances load has no key
_ADMIN: Final = "/admin/"
_SPARE: Final = 16 << 20  # bytes beyond the bound that are read, to be thrown away


class Guard:
    """An ASGI application in front of another. It reads bodies, so none is longer than allowed.

    Raises nothing: what it does not let through, it answers.
    """

    def __init__(self, app: ASGIApp, options: ServerOptions) -> None:
        self._app, self._options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body, wrong = b"", self._wrong_key(scope["path"], headers)
        try:
            if scope["method"] in ("POST", "PUT", "PATCH"):
                body = await self._body(headers, receive, wrong is None)
            if wrong is not None:
                raise wrong
            if body:
                _check_kind(headers)
        except ApiError as error:
            await refuse(error, send)
            return
        except ConnectionAbortedError:
            return
        parts: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def rest() -> Message:
            return parts.pop() if parts else await receive()

        await self._app(scope, rest, send)

    def _wrong_key(self, path: str, headers: Headers) -> ApiError | None:
        if path == _OPEN:
            return None
        options = self._options
        is_admin = path.startswith(_ADMIN)
        key = options.admin_key if is_admin else options.api_key
        if is_admin and key is None:
            return ApiError(403, "/admin is off; start the server with --admin-key")
        if key is None:
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        # bytes as they came, for a key may be in any script; the same time for every wrong one
        same = hmac.compare_digest(given.strip().encode("latin-1"), key.encode())
        if kind.lower() != "bearer" or not same:
            which = "admin key" if is_admin else "API key"
            return ApiError(
                401,
                f"this needs the {which}: send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return None

    async def _body(self, headers: Headers, receive: Receive, wanted: bool) -> bytes:
        """The body; b"" if it is not wanted. One that is a little too large is read, too: whoever
        still sends when the connection is closed may never see why."""
        most = self._options.max_body if wanted else 0
        length = headers.get("content-length", "0")
        known = int(length) if length.isdecimal() else 0
        body = None
        if known <= most or known <= most + _SPARE and "expect" not in headers:
            try:
                reading = _read(receive, most, most + _SPARE)
                body = await asyncio.wait_for(reading, self._options.stalled)
            except asyncio.TimeoutError:
                seconds = f"{self._options.stalled:g}"
                raise ApiError(408, f"the body did not arrive within {seconds} s") from None
        if body is None and wanted:
            raise ApiError(413, f"the body is larger than {most} bytes, which --max-body allows")
        return body or b""


async def refuse(error: ApiError, send: Send) -> None:
    """Answer with an error, and close the connection: its body may not have been read."""
    body = error.encoded()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    headers |= {"connection": "close", **{k.lower(): v for k, v in error.headers.items()}}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


async def _read(receive: Receive, most: int, end: int) -> bytes | None:
    """A body of at most ``most`` bytes; None for a longer one, of which ``end`` bytes are read."""
    parts, size = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionAbortedError
        part = message.get("body", b"")
        size += len(part)
        if size <= most:
            parts.append(part)
        if size > end or not message.get("more_body"):
            return b"".join(parts) if size <= most else None


def _check_kind(headers: Headers) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    # a page of another site may send text or a form without asking, but no JSON
    if kind != "application/json":
        raise ApiError(
            415, f"the body must be JSON: send content-type: application/json, not {kind!r}"
        )
