"""One completion over HTTP: asked, waited for, written whole or as a stream, given up if the client
goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from minisgl.message.records import Prompt
from minisgl.sampling import SamplingParams
from minisgl.server.desk import Desk, Reply
from minisgl.server.errors import ApiError
from minisgl.server.replies import Writer

_GONE: Final = 499  # as nginx has it; nobody is there to read it


@dataclass
class Question:
    """What a client asks for, checked."""

    prompts: Sequence[Prompt]
    n: int
    sampling: SamplingParams
    stream: bool
    echo: bool


@dataclass
class Patience:
    """Seconds. keep_alive: between signs of life on a stream. stalled: for a client that does not
    read."""

    keep_alive: float = 10.0
    stalled: float = 60.0


class Exchange(Response):
    """An answer that is still to be made when it is returned.

    ended: is told the reply at its end, whatever it was.
    """

    def __init__(
        self,
        desk: Desk,
        question: Question,
        writer: Writer,
        patience: Patience,
        ended: Callable[[Reply], None],
    ) -> None:
        self.background = None
        self._desk, self._question, self._writer = desk, question, writer
        self._patience, self._ended = patience, ended
        self._sending: float | None = None  # since when
        self._started = self._stalled = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask, and answer. Errors become OpenAI's; on a stream that has begun, its last event."""
        question = self._question
        try:
            with self._desk.asking(
                question.prompts,
                question.n,
                question.sampling,
                echo=question.echo,
                whole=not question.stream,
            ) as reply:
                mine = asyncio.current_task()
                assert mine is not None
                watch = asyncio.ensure_future(self._watch(receive, reply, mine))
                try:
                    await (self._stream if question.stream else self._whole)(reply, send)
                finally:
                    watch.cancel()
                    self._ended(reply)
        except ApiError as error:
            if error.status != _GONE:
                await self._fail(error, send)
        except asyncio.CancelledError:
            if not self._stalled:  # then nothing can be said any more
                raise

    async def _whole(self, reply: Reply, send: Send) -> None:
        await reply.finish()
        await self._answer(200, self._writer.body(reply), {}, send)

    async def _stream(self, reply: Reply, send: Send) -> None:
        await reply.begin()
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self._started = True
        while True:
            is_open = reply.is_open
            chunks = b"".join(self._writer.chunks(reply.fresh()))
            if chunks:
                await self._write(chunks, send)
            if reply.error is not None:
                raise reply.error
            if not is_open:
                break
            if not await reply.wait():
                await self._write(b": keep-alive\n\n", send)
        await self._write(b"".join(self._writer.last(reply)), send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _write(self, body: bytes, send: Send) -> None:
        self._sending = monotonic()
        await send({"type": "http.response.body", "body": body, "more_body": True})
        self._sending = None

    async def _watch(self, receive: Receive, reply: Reply, task: asyncio.Task[object]) -> None:
        """Notice that the client has gone or does not read, and remind the stream to show life."""
        gone = asyncio.ensure_future(_disconnect(receive))
        try:
            while not (await asyncio.wait({gone}, timeout=self._patience.keep_alive))[0]:
                since = self._sending
                if since is not None and monotonic() - since > self._patience.stalled:
                    self._stalled = True
                    task.cancel()
                    return
                reply.remind()
            reply.fail(ApiError(_GONE, "the client has gone away"))
        finally:
            gone.cancel()

    async def _fail(self, error: ApiError, send: Send) -> None:
        if not self._started:
            await self._answer(error.status, error.encoded(), error.headers, send)
            return
        await self._write(b"data: " + error.encoded() + b"\n\ndata: [DONE]\n\n", send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _answer(self, status: int, body: bytes, headers: dict[str, str], send: Send) -> None:
        pairs = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        pairs += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
