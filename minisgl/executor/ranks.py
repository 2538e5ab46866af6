"""The worker processes of one tensor-parallel model: started, talked to, watched and ended here.

All ranks are workers, the first too: the engine's process is in no collective, so none can hang it,
and what belongs to a process (torch's default group, a GPU's context, its memory) goes when the
process goes. The price is one more process that has imported torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import suppress
from itertools import count
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, Final

from minisgl.config import EngineConfig
from minisgl.engine.runner import Worker
from minisgl.executor import wire

Answers = tuple[wire.Ready | wire.Done, ...]  # in order of rank

_GRACE: Final = 5.0  # seconds that the other ranks have to answer once one has failed
_ENDING: Final = 5.0  # seconds that the workers have to end by themselves
_WAY_OUT: Final = "all ranks are needed: close this engine and load another"
_BUILTIN: Final[Mapping[str, type[Exception]]] = {
    kind.__name__: kind
    for kind in (AssertionError, FileNotFoundError, MemoryError, OSError, TypeError, ValueError)
}


class InWorker(Exception):
    """Where in a worker an exception was raised: its traceback as text."""


class _Asked:
    """A command under way, who has answered it, and since when some rank has failed."""

    def __init__(self) -> None:
        self.future: Future[Answers] = Future()
        self.answers: dict[int, wire.Answer] = {}
        self.since: float | None = None

    @property
    def good(self) -> Answers:
        """The answers of ranks that did not fail, in order of rank."""
        answers = (answer for _, answer in sorted(self.answers.items()))
        return tuple(answer for answer in answers if not isinstance(answer, wire.Failed))

    @property
    def error(self) -> Exception:
        """What the lowest rank that failed raised. ``since`` must be known."""
        failures = {r: a for r, a in self.answers.items() if isinstance(a, wire.Failed)}
        rank = min(failures)
        failed = failures[rank]
        kind = _BUILTIN.get(failed.kind)
        text = failed.text if kind else f"{failed.kind}: {failed.text}"
        error = (kind or RuntimeError)(f"rank {rank}: {text}")
        error.__cause__ = InWorker(failed.where)
        return error


class Ranks:
    """Worker processes, each with its part of a model. Used by several runners: forks share them.

    ``broken`` says why nothing can be computed any more, None while it can. Commands take effect in
    the order in which they are sent. A thread collects the answers, for it is never interrupted
    between the bytes of one.
    """

    def __init__(
        self, folder: Path, config: EngineConfig, depth: int, patience: float = 300.0
    ) -> None:
        """Start ``config.tp`` workers and let them load.

        config: resolved. patience: seconds that a rank waits for the others in a collective.
        Raises what loading raised in a worker, naming the rank; RuntimeError for one that ended.
        """
        self.broken: str | None = None
        self.gone: deque[int] = deque()  # what nobody can name any more; the ranks are told later
        self._numbers, self._users, self._owner = count(1), 1, os.getpid()
        self._lock, self._ready, self._ending = threading.RLock(), False, False
        self._pending: list[deque[_Asked]] = [deque() for _ in range(config.tp)]
        self._pipes: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        with tempfile.TemporaryDirectory(prefix="minisgl-ranks-") as meeting:
            try:
                for rank in range(config.tp):
                    self._spawn(rank)
                threading.Thread(target=self._listen, name="minisgl-ranks", daemon=True).start()
                fields = vars(config) | {"policy": "prefill_first"}  # policies are the host's
                about = (config.tp, str(folder), fields, depth, f"{meeting}/ranks", patience)
                ready = self._send([wire.Start(rank, *about) for rank in range(config.tp)]).result()
            except BaseException:
                self._kill("loading failed")
                raise
        self._ready = True
        parts = [part for part in ready if isinstance(part, wire.Ready)]
        self.page_bytes = sum(part.page_bytes for part in parts)
        self.table_bytes = sum(part.table_bytes for part in parts)
        for message in parts[0].warnings:
            warnings.warn(message, stacklevel=2)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """The processes in order of rank; () once they have ended."""
        if self.broken is not None:
            return ()
        return tuple(Worker(rank, process.pid) for rank, process in enumerate(self._processes))

    def number(self) -> int:
        """A new name for something that the ranks keep. It goes into ``gone`` when it is done."""
        return next(self._numbers)

    def send(self, command: wire.Command) -> Future[Answers]:
        """Ask all ranks.

        The future has their answers, or raises what the lowest rank that failed raised, and
        RuntimeError once the ranks are broken.
        """
        forgotten = []
        while self.gone:  # finalizers append to it, at any moment
            forgotten.append(self.gone.popleft())
        with self._lock:
            if forgotten:
                self._send([wire.Forget(tuple(forgotten))] * len(self._pipes))
            return self._send([command] * len(self._pipes))

    def join(self) -> None:
        """One more runner uses them."""
        with self._lock:
            self._users += 1

    def leave(self, runner: int) -> None:
        """A runner needs them no more. The last one's leaving ends them when they have finished
        what was sent; interrupted, at once.
        """
        self.gone.append(runner)
        with self._lock:
            self._users -= 1
            if self._users:
                return
        try:
            self._finish()
        finally:
            self._kill("the engine was closed")

    def drop(self, runner: int) -> None:
        """``leave`` for a runner that was never closed, at any moment: waits for nothing."""
        if os.getpid() != self._owner:
            return  # this is a process that the engine's forked
        self.gone.append(runner)
        with self._lock:
            self._users -= 1
            if not self._users:
                self._kill("the engine was dropped")

    # ---- processes -------------------------------------------------------------------------------

    def _spawn(self, rank: int) -> None:
        """Start a process that runs ``worker.main`` and that SIGINT does not reach.

        Not multiprocessing's spawn, which imports the user's script again, and unpickles.
        """
        mine, its = Pipe()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from minisgl.executor.worker import main; "
            f"main({its.fileno()}, {os.getpid()})"
        )
        settings = {"GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"}
        if rank:
            settings["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # one bar is enough
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit it
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", code, "minisgl", "rank", str(rank)],
                stdin=subprocess.DEVNULL,
                pass_fds=(its.fileno(),),
                env={**os.environ, **settings},
            )
            self._processes.append(process)
            self._pipes.append(mine)
        finally:
            its.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _finish(self) -> None:
        """Wait for what was sent, then for the processes to end."""
        with self._lock:
            asked = [one.future for pending in self._pending for one in pending]
        futures.wait(asked)
        with self._lock:
            self._ending = True
            with suppress(OSError):
                for pipe in self._pipes:
                    pipe.send_bytes(wire.pack(wire.Close()))
        deadline = time.monotonic() + _ENDING
        with suppress(subprocess.TimeoutExpired):
            for process in self._processes:
                process.wait(max(0.0, deadline - time.monotonic()))

    def _kill(self, why: str) -> None:
        """End every process now. What was asked and not answered raises RuntimeError."""
        with self._lock:
            self.broken, self._ending = self.broken or why, True
            for process in self._processes:
                process.kill()
            for pending in self._pending:
                while pending:
                    _fail(pending.popleft(), RuntimeError(self.broken))
            for process in self._processes:
                process.wait()

    def _lost(self, rank: int) -> None:
        """A process has ended, or closed its pipe, unasked."""
        process, code = self._processes[rank], None
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(_ENDING)
        how = "closed its pipe" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += " (by somebody, or by the system for want of memory)"
        if not self._ready:
            how += " before it had loaded; its standard error may say more"
        self._kill(f"rank {rank} (process {process.pid}) {how}; {_WAY_OUT}")

    # ---- commands and answers --------------------------------------------------------------------

    def _send(self, commands: Sequence[wire.Command]) -> Future[Answers]:
        """Each rank's own command; packed once where it is the same."""
        asked, rank, data = _Asked(), 0, b""
        with self._lock:
            if self.broken is not None:
                _fail(asked, RuntimeError(self.broken))
                return asked.future
            try:
                for rank, pipe in enumerate(self._pipes):
                    if not rank or commands[rank] is not commands[rank - 1]:
                        data = wire.pack(commands[rank])
                    self._pending[rank].append(asked)
                    pipe.send_bytes(data)
            except OSError:
                self._lost(rank)
            except BaseException as error:
                self._kill(f"{error!r} while a command was on its way; {_WAY_OUT}")
                raise
        return asked.future

    def _listen(self) -> None:
        """Collect answers until all processes have ended."""
        ranks: dict[Any, int] = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        while ranks:
            heard = wait(ranks, self._time_left())
            with self._lock:
                for pipe in heard:
                    assert isinstance(pipe, Connection)
                    try:
                        self._answered(ranks[pipe], wire.answer(pipe.recv_bytes()))
                    except (EOFError, OSError):
                        rank = ranks.pop(pipe)
                        pipe.close()
                        if not self._ending:
                            self._lost(rank)
                    except Exception as error:
                        self._kill(f"rank {ranks[pipe]} cannot be understood: {error!r}")
                for asked in self._overdue(time.monotonic()):
                    self._failed(asked)

    def _answered(self, rank: int, answer: wire.Answer) -> None:
        if not self._pending[rank]:
            return  # it was killed meanwhile
        asked = self._pending[rank].popleft()
        asked.answers[rank] = answer
        whole = len(asked.answers) == len(self._pipes)
        if isinstance(answer, wire.Failed):
            asked.since = asked.since or time.monotonic()
            if whole or not self._ready:
                self._failed(asked)
        elif whole and asked.since is not None:
            self._failed(asked)
        elif whole:
            asked.future.set_result(asked.good)

    def _failed(self, asked: _Asked) -> None:
        """Some ranks have failed. They go on if each took part in the same collectives."""
        error = asked.error
        _fail(asked, error)
        counts = {getattr(answer, "num_collectives", None) for answer in asked.answers.values()}
        if len(asked.answers) < len(self._pipes) or len(counts) > 1 or None in counts:
            kind = type(error).__name__
            self._kill(f"{error} ({kind}), and the ranks no longer keep step; {_WAY_OUT}")

    def _overdue(self, now: float) -> list[_Asked]:
        """What some rank failed at, and others have not answered in time."""
        heads = [pending[0] for pending in self._pending if pending]
        return [one for one in heads if one.since is not None and now >= one.since + _GRACE]

    def _time_left(self) -> float | None:
        """Seconds until something is overdue; None: nothing will be."""
        with self._lock:
            heads = [pending[0] for pending in self._pending if pending]
        since = [one.since for one in heads if one.since is not None]
        return max(0.0, min(since) + _GRACE - time.monotonic()) if since else None


def _fail(asked: _Asked, error: Exception) -> None:
    if not asked.future.done():
        asked.future.set_exception(error)
