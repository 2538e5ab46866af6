"""The API's end of the ring: requests that are open, and what has arrived for each.

A ``Reply`` is a mailbox: what arrives is added up until somebody reads it, so a slow reader holds
up nobody and costs no more than its answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from time import monotonic
from typing import Any

from minisgl.message.records import (
    Ask,
    Cancel,
    Decode,
    Echo,
    Encode,
    Hello,
    Load,
    Opened,
    Order,
    Over,
    Piece,
    Prompt,
    Ready,
    Refused,
    Reported,
    Spelled,
    Stop,
    ToApi,
    ToTokenizer,
    Watched,
)
from minisgl.sampling import SamplingParams
from minisgl.server.errors import ApiError, overloaded, unavailable
from minisgl.server.watch import Viewer

Send = Callable[[ToTokenizer], None]


class Choice:
    """One answer of a request, as far as it has arrived and was not taken."""

    def __init__(self, index: int, prompt_index: int) -> None:
        self.index, self.prompt_index = index, prompt_index
        self.opened: Opened | None = None
        self.echo: Echo | None = None
        self.text, self.num_tokens = "", 0
        self.scores: list[Spelled] = []
        self.over: Over | None = None
        self.total_tokens = 0  # taken ones included

    def take(self) -> tuple[str, list[Spelled]]:
        """The text and the logprobs that have arrived since the last time."""
        text, scores = self.text, self.scores
        self.text, self.scores, self.num_tokens = "", [], 0
        return text, scores


class Reply:
    """What has arrived for one HTTP request. The desk writes it, the one that asked reads it."""

    def __init__(self, rids: Sequence[int], num_prompts: int) -> None:
        each = len(rids) // num_prompts
        self.choices = {rid: Choice(i, i // each) for i, rid in enumerate(rids)}
        self.begun = monotonic()
        self.first: float | None = None  # when something was first there
        self.error: ApiError | None = None
        self._news = asyncio.Event()
        self._fresh: dict[int, None] = {}  # rids with something to take, in order

    @property
    def is_open(self) -> bool:
        """Whether anything is still to come."""
        return self.error is None and any(c.over is None for c in self.choices.values())

    @property
    def is_begun(self) -> bool:
        """Whether the engine has taken every part of it."""
        return all(choice.opened for choice in self.choices.values())

    def note(self, rid: int) -> None:
        """Something has arrived for ``rid``."""
        self._fresh[rid] = None
        self._news.set()

    def fail(self, error: ApiError) -> None:
        """Nothing more will arrive."""
        self.error = self.error or error
        self._news.set()

    def remind(self) -> None:
        """Wake the reader although nothing has arrived."""
        self._news.set()

    async def wait(self) -> bool:
        """Wait until something has arrived; False for a reader that was only reminded."""
        await self._news.wait()
        self._news.clear()
        return bool(self._fresh) or self.error is not None

    def fresh(self) -> list[Choice]:
        """The answers with something to take, those that moved first first."""
        rids, self._fresh = self._fresh, {}
        return [self.choices[rid] for rid in rids]

    async def begin(self) -> None:
        """Wait until the engine has taken it. Raises ``ApiError`` if it, or a part, is refused."""
        while not self.is_begun and self.error is None:
            await self.wait()
        if self.error is not None:
            raise self.error

    async def finish(self) -> None:
        """Wait for its end. Raises ``ApiError`` if it fails."""
        while self.is_open:
            await self.wait()
        if self.error is not None:
            raise self.error


class Desk:
    """Every open request. It alone numbers them, and it bounds how many there are.

    send: puts a message on its way round the ring. most_waiting: requests that may wait for a slot.
    observer: is told of every reply that has ended.
    """

    def __init__(self, send: Send, most_waiting: int) -> None:
        self._send, self._most_waiting = send, most_waiting
        self.next_rid = self._next_key = 0
        self._replies: dict[int, Reply] = {}  # by rid, until it is over
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._viewers: dict[int, Viewer] = {}
        self._down: str | None = "the model is being loaded"  # why nobody can be asked
        self.ready: Ready | None = None
        self.load: Load | None = None  # the engine's numbers after its last step
        self.is_ready = asyncio.Event()

    # ---- asking ----------------------------------------------------------------------------------

    @property
    def num_open(self) -> int:
        """Requests that are neither over nor given up."""
        return len(self._replies)

    def check_up(self) -> Ready:
        """What the engine is. Raises ``ApiError`` while it cannot be asked."""
        if self._down is not None:  # each time another: a raised error keeps what raised it
            raise unavailable(self._down)
        assert self.ready is not None
        return self.ready

    @contextmanager
    def asking(
        self,
        prompts: Sequence[Prompt],
        n: int,
        sampling: SamplingParams,
        *,
        echo: bool = False,
        whole: bool = False,
    ) -> Iterator[Reply]:
        """Ask for ``n`` answers to each prompt. What is not over at the end is cancelled.

        Raises ``ApiError`` while the server is not up, or has too much to do.
        """
        ready = self.check_up()
        count = len(prompts) * n
        if count > self._most_waiting:
            raise ApiError(
                400,
                f"{count} answers were asked at once; at most {self._most_waiting} may wait",
                param="n",
            )
        if self.num_open + count > ready.max_running + self._most_waiting:
            raise overloaded(self.num_open, self._most_waiting)
        rids = range(self.next_rid, self.next_rid + count)
        self.next_rid += count
        reply = Reply(rids, len(prompts))
        try:
            for i, prompt in enumerate(prompts):
                mine = tuple(rids[i * n : (i + 1) * n])
                self._replies.update(dict.fromkeys(mine, reply))
                self._send(Ask(mine, prompt, sampling, echo, whole))
            yield reply
        finally:
            for rid in rids:
                if self._replies.pop(rid, None):
                    self._send(Cancel(rid))

    async def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt. Raises ``ApiError``."""
        self.check_up()
        found = await self._report(lambda key: Encode(key, prompt))
        ids: list[int] = found["ids"]
        return ids

    async def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids. Raises ``ApiError``."""
        self.check_up()
        found = await self._report(lambda key: Decode(key, tuple(ids)))
        text: str = found["text"]
        return text

    async def order(self, verb: str, **given: Any) -> dict[str, Any]:
        """What an administrator asks of the engine. Raises ``ApiError``."""
        self.check_up()
        return await self._report(lambda key: Order(key, verb, given))

    @asynccontextmanager
    async def watching(self, redact: bool) -> AsyncIterator[Viewer]:
        """The run while it happens, from now on. Raises ``ApiError`` if too many watch."""
        self.check_up()
        key, viewer = self._next_key, Viewer()
        self._next_key += 1
        self._viewers[key] = viewer
        try:
            await self.order("watch", key=key, redact=redact)
            yield viewer
        finally:
            del self._viewers[key]
            if self._down is None:
                self._send(Order(self._next_key, "unwatch", {"key": key}))
                self._next_key += 1

    async def _report(self, question: Callable[[int], ToTokenizer]) -> dict[str, Any]:
        key = self._next_key
        self._next_key += 1
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[key] = future
        try:
            self._send(question(key))
            return await future
        finally:
            del self._asked[key]

    # ---- the ring --------------------------------------------------------------------------------

    def hello(self) -> None:
        """Ask everybody whether they are there."""
        self._send(Hello())

    def stop(self) -> None:
        """Tell everybody to finish and end."""
        self._send(Stop())

    def fail(self, reason: str) -> None:
        """Nobody answers any more: end everything that is open with this reason."""
        self._down = reason
        for reply in self._replies.values():
            reply.fail(unavailable(reason))
        for future in self._asked.values():
            if not future.done():
                future.set_exception(unavailable(reason))
        self.end_views(reason)

    def end_views(self, reason: str) -> None:
        """Let nobody watch any more."""
        for viewer in self._viewers.values():
            viewer.end(reason)

    def take(self, messages: Sequence[ToApi]) -> None:
        """Deliver what has come round."""
        for message in messages:
            match message:
                case Piece(rid=rid):
                    if reply := self._replies.get(rid):
                        self._piece(reply, message)
                case Opened(rid=rid):
                    if reply := self._replies.get(rid):
                        reply.choices[rid].opened = message
                        reply.note(rid)
                case Echo(rid=rid):
                    if reply := self._replies.get(rid):
                        reply.choices[rid].echo = message
                        reply.note(rid)
                case Refused(rids=rids, reason=reason):
                    for rid in rids:
                        if reply := self._replies.pop(rid, None):
                            reply.fail(ApiError(400, reason))
                case Reported(key=key, found=found, error=error):
                    self._reported(key, found, error)
                case Watched(key=key, lines=lines):
                    if viewer := self._viewers.get(key):
                        viewer.put(lines)
                case Load():
                    self.load = message
                case Ready():
                    self.ready, self._down = message, None
                    self.is_ready.set()

    def _piece(self, reply: Reply, piece: Piece) -> None:
        choice = reply.choices[piece.rid]
        if piece.num_tokens and reply.first is None:
            reply.first = monotonic()
        choice.text += piece.text
        choice.num_tokens += piece.num_tokens
        choice.total_tokens += piece.num_tokens
        choice.scores += piece.scores
        if piece.over is not None:
            choice.over = piece.over
            self._replies.pop(piece.rid)
        reply.note(piece.rid)

    def _reported(self, key: int, found: dict[str, Any] | None, error: str | None) -> None:
        future = self._asked.get(key)
        if future is None or future.done():
            return
        if error is not None or found is None:
            future.set_exception(ApiError(400, error or "nothing was found"))
        else:
            future.set_result(found)
