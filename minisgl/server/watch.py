"""A served run while it happens, for those who look at it: the lines of a trace file, over HTTP.

In the engine's process a ``Gallery`` makes the lines, once for those who may read what was said and
once for those who may not. In the API's, each viewer has a bounded mailbox: one that does not read
loses its view, and slows nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Final

from minisgl.core import Input, StepRecord
from minisgl.engine.engine import Engine
from minisgl.message.records import Watched
from minisgl.trace.record import Tape

MOST_VIEWERS: Final = 16
_PENDING: Final = 16 << 20  # characters that may wait for a viewer
_ALIVE: Final = 10.0  # seconds between signs of life


class Gallery:
    """Those who watch an engine, in its own process. It costs nothing while nobody does."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tapes: dict[int, Tape] = {}
        self._coming: dict[int, bool] = {}  # key -> whether what was said is left out
        self._said: list[Watched] = []

    @property
    def has_visitors(self) -> bool:
        """Whether somebody waits to be let in, which needs a moment with nothing in flight."""
        return bool(self._coming)

    def enter(self, key: int, redact: bool) -> None:
        """Let somebody watch from the next such moment on. Raises RuntimeError if it is full."""
        if len(self._tapes) + len(self._coming) >= MOST_VIEWERS:
            raise RuntimeError(f"{MOST_VIEWERS} watch already; end another view first")
        self._coming[key] = redact

    def leave(self, key: int) -> None:
        """Show nothing more under this key."""
        self._coming.pop(key, None)
        self._tapes.pop(key, None)
        self._listen()

    def open(self) -> None:
        """Let in all who wait. Nothing may be in flight."""
        engine = self._engine
        for key, redact in self._coming.items():
            tape = self._tapes[key] = Tape(engine.header, redact)
            self._said.append(Watched(key, tape.begin(engine.state())))
        self._coming.clear()
        self._listen()

    def said(self) -> Iterable[Watched]:
        """Lines since they were asked for last."""
        said, self._said = self._said, []
        return said

    def _listen(self) -> None:
        listeners, observers = self._engine.listeners, self._engine.observers
        if self._tapes and self._note not in listeners:
            listeners.append(self._note)
            observers.append(self._record)
        elif not self._tapes and self._note in listeners:
            listeners.remove(self._note)
            observers.remove(self._record)

    def _note(self, item: Input) -> None:
        for tape in self._tapes.values():
            tape.listen(item)

    def _record(self, record: StepRecord) -> None:
        self._said += [Watched(key, tape.record(record)) for key, tape in self._tapes.items()]


class Viewer:
    """What has arrived for one who watches, in the API's process."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._size = 0
        self._news = asyncio.Event()
        self._over: str | None = None

    def put(self, lines: str) -> None:
        """More lines. Where too many wait to be read, these and all others are dropped."""
        if self._over is not None:
            return
        self._size += len(lines)
        if self._size > _PENDING:
            self._lines.clear()
            self.end(f"this view fell {_PENDING >> 20} MB behind; open another")
            return
        self._lines.append(lines)
        self._news.set()

    def end(self, reason: str) -> None:
        """Nothing more will arrive."""
        self._over = reason
        self._news.set()

    async def events(self) -> AsyncIterator[str]:
        """The lines as server-sent events, with comments as signs of life; the last may be an
        ``end`` with a reason."""
        while True:
            lines, self._lines, self._size = "".join(self._lines), [], 0
            if lines:
                yield "".join(f"data: {line}\n\n" for line in lines.splitlines())
            if self._over is not None:
                yield f"event: end\ndata: {self._over}\n\n"
                return
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), _ALIVE)
            except asyncio.TimeoutError:
                yield ": alive\n\n"
