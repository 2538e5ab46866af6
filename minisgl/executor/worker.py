"""A worker process: one rank. It computes what its engine's process sends, in that order.

It ends when it is told to, when its pipe closes, and when its parent is no longer there. SIGINT
does not reach it: it is born with that signal blocked, for a notebook interrupts all processes.
"""

from __future__ import annotations

import os
import threading
import traceback
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import torch

from minisgl.config import EngineConfig
from minisgl.core import Outcome
from minisgl.distributed.processes import Lost, Processes
from minisgl.executor import wire
from minisgl.executor.cuda import CudaForward
from minisgl.executor.forward import Forward
from minisgl.executor.kv_pool import Contents
from minisgl.executor.profiler import Profiler
from minisgl.executor.tables import Tables
from minisgl.executor.torch_runner import load_model, make_forward, use_threads
from minisgl.models.config import ModelConfig

_LOOK: Final = 1.0  # seconds between two looks at who the parent is


def main(handle: int, parent: int) -> None:
    """Serve the pipe with this handle until it tells to end. parent: the engine's process."""
    pipe, inbox = Connection(handle), SimpleQueue[wire.Command]()
    threading.Thread(target=_listen, args=(pipe, parent, inbox), daemon=True).start()
    start = inbox.get()
    assert isinstance(start, wire.Start), f"the first command is {start!r}"
    try:
        rank, ready = _start(start)
    except Exception as error:
        with suppress(BrokenPipeError):
            pipe.send_bytes(wire.pack(_failure(error, 0)))
        os._exit(1)
    with suppress(BrokenPipeError):  # the engine is gone, and so will this process be
        pipe.send_bytes(wire.pack(ready))
        while not isinstance(command := inbox.get(), wire.Close):
            pipe.send_bytes(wire.pack(rank.answer(command)))
    rank.group.leave()
    os._exit(0)  # Python would take torch apart first, for seconds on a busy machine


def _listen(pipe: Connection, parent: int, inbox: SimpleQueue[wire.Command]) -> None:
    """Pass on every command; end this process, in the middle of whatever it does, with its engine.

    Who the parent is is looked at too: a process that the engine forked holds the pipe open.
    """
    try:
        while os.getppid() == parent:
            if pipe.poll(_LOOK):
                inbox.put(wire.command(pipe.recv_bytes()))
    except (EOFError, OSError):
        pass
    except Exception:
        traceback.print_exc()
    os._exit(1)


def _start(start: wire.Start) -> tuple[Rank, wire.Ready]:
    config = EngineConfig().but(**start.config)
    threads = config.threads
    assert not isinstance(threads, str), "the configuration is resolved"
    use_threads(threads)
    device = torch.device(config.device)
    if device.type == "cuda":
        device = torch.device("cuda", start.rank)
        torch.cuda.set_device(device)  # "cuda" is this one from here on
    folder = Path(start.folder)
    described = ModelConfig.read(folder)
    group = Processes(start.rank, start.size, device, Path(start.meeting), start.patience)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = load_model(folder, described, config, group)
    forward = make_forward(model, described, config, group, start.depth)
    memory = forward.memory
    said = tuple(str(warning.message) for warning in told)
    return Rank(forward, group), wire.Ready(memory.pool.page_bytes, memory.tables.num_bytes, said)


class Rank:
    """What this process keeps: runners, and the contents and tables of snapshots, by number."""

    def __init__(self, forward: Forward | CudaForward, group: Processes) -> None:
        self.group = group
        self._forwards: dict[int, Forward | CudaForward] = {0: forward}
        self._contents: dict[int, Contents] = {}
        self._tables: dict[int, Tables] = {}
        self._profiler: Profiler | None = None  # that watches now

    def answer(self, command: wire.Command) -> wire.Done | wire.Failed:
        """Carry a command out."""
        before = self.group.num_collectives
        try:
            done = self._do(command)
        except Exception as error:
            return _failure(error, self.group.num_collectives - before)
        return done

    def _do(self, command: wire.Command) -> wire.Done:
        match command:
            case wire.Launch():
                return self._compute(self._forwards[command.runner], command)
            case wire.Save():
                memory = self._forwards[command.runner].memory
                self._contents[command.contents] = memory.read(command.pages)
                self._tables[command.tables] = memory.copy_tables()
            case wire.Restore():
                memory = self._forwards[command.runner].memory
                for number, pages, rows in command.parts:
                    memory.put(pages, self._contents[number], rows)
                memory.set_tables(self._tables[command.tables])
            case wire.Fork():
                self._forwards[command.twin] = self._forwards[command.runner].fork()
            case wire.Forget():
                for number in command.numbers:
                    for kept in (self._forwards, self._contents, self._tables):
                        kept.pop(number, None)
            case wire.Profile(on=True):
                self._profiler = self._watch()
            case wire.Profile():
                profiler, self._profiler = self._profiler, None
                if profiler is not None:
                    profiler.__exit__(None, None, None)
                    return wire.Done(seen=profiler.spans)
            case _:
                raise AssertionError(f"not expected now: {command!r}")
        return wire.Done()

    def _watch(self) -> Profiler:
        forward = self._forwards[0]
        return Profiler(forward.lane, forward.memory.device).__enter__()

    def _compute(self, forward: Forward | CudaForward, command: wire.Launch) -> wire.Done:
        before = self.group.num_collectives
        run = forward.run if self._profiler is None else self._profiler.marked(forward.run)
        outcome: Outcome = run(wire.unpack_batch(command.batch))
        count = self.group.num_collectives - before
        spans = tuple(s._replace(name=f"{s.name}, {count} collectives") for s in outcome.spans)
        return wire.Done(count, outcome._replace(spans=spans))


def _failure(error: Exception, num_collectives: int) -> wire.Failed:
    return wire.Failed(
        type(error).__name__,
        str(error),
        "".join(traceback.format_exception(error)),
        None if isinstance(error, Lost) else num_collectives,
    )
