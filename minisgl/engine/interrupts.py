"""Interrupts wait while the engine is between two doors, so that none can leave it half-way."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Held:
    """A context in which SIGINT (Ctrl-C, Jupyter's stop button) is noted, and delivered at its end.

    Only the main thread receives signals; elsewhere, and where no Python function handles SIGINT,
    it does nothing. Contexts may be nested.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._handler: Any = None
        self._came: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1 and threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):
                self._handler = handler
                signal.signal(signal.SIGINT, self._note)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth or self._handler is None:
            return
        handler, came = self._handler, self._came
        self._handler = self._came = None
        signal.signal(signal.SIGINT, handler)
        if came is not None:
            handler(*came)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = (number, frame)
