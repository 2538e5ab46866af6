"""One process of the server: how it starts, what it says when it fails, and that it never outlives
the one that started it.

What a stage reports to its parent goes through a pipe of its own, as text: the links may be what
failed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Final

from minisgl.server.links import Links

Report = Callable[[str], None]
Work = Callable[[Links, Report], None]

FAILED: Final = "failed: "  # what a last report begins with
_LONGEST_REPORT: Final = 20_000


class Stage:
    """A process that is to run until it is told to stop. ``process`` is its handle."""

    def __init__(self, name: str, work: Work, links: Links) -> None:
        """work: a function of a module, or an instance of a class of one, for it must travel."""
        context = get_context("spawn")
        self.name = name
        self._told: list[str] = []
        self._reports, theirs = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(
            target=_run, args=(work, links, theirs), name=f"minisgl-{name}"
        )
        self.process.start()
        theirs.close()

    @property
    def sentinel(self) -> int:
        """A file descriptor that is readable once the process has ended."""
        return self.process.sentinel

    def death(self) -> str:
        """How it ended, in words."""
        code = self.process.exitcode
        how = f"exit code {code}"
        if code is not None and code < 0:
            how = f"ended by {signal.Signals(-code).name}"
        return f"the {self.name} process (pid {self.process.pid}) died, {how}"

    def failure(self) -> str | None:
        """What it reported as the reason of its end."""
        failed = [report for report in self.read() if report.startswith(FAILED)]
        return failed[-1].removeprefix(FAILED) if failed else None

    def read(self) -> list[str]:
        """What it has reported so far."""
        with contextlib.suppress(EOFError, OSError):
            while self._reports.poll():
                self._told.append(self._reports.recv_bytes().decode(errors="replace"))
        return self._told

    def end(self, patience: float) -> None:
        """Wait for its end so long; then end it."""
        self.process.join(patience)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self._reports.close()


def _run(work: Work, links: Links, reports: Connection) -> None:
    # both reach a whole group of processes; the parent alone says what then, once it has drained
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(format="minisgl: %(message)s", level=logging.WARNING)
    warnings.showwarning = _warn
    Thread(target=_end_with_parent, args=(links,), daemon=True).start()

    def report(text: str) -> None:
        with contextlib.suppress(OSError):
            reports.send_bytes(text[-_LONGEST_REPORT:].encode())

    try:
        work(links, report)
    except (ValueError, OSError, ModuleNotFoundError, MemoryError) as error:
        report(FAILED + str(error))  # what a user can do something about is told in one sentence
        sys.exit(2)
    except Exception as error:
        report(f"{FAILED}{type(error).__name__}: {error}\n{traceback.format_exc()}")
        sys.exit(1)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: object = None,
) -> None:
    logging.getLogger("minisgl").warning(message)  # one line, without the code that warned


def _end_with_parent(links: Links) -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    links.remove()
    os._exit(1)  # whatever the main thread does: nobody wants it any more


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as data that travel: a function becomes its name."""
    return {
        name: getattr(value, "__name__", repr(value)) if callable(value) else value
        for name, value in settings.items()
    }
