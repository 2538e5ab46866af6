"""The server as a whole: its processes are started, watched and ended here.

This process is the API. It starts the others, asks them round the ring whether they are ready,
and goes down with the reason as soon as one of them dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import uvicorn
import zmq
import zmq.asyncio

from minisgl.config import EngineConfig
from minisgl.message.records import ToApi
from minisgl.message.wire import Inbox, Outbox
from minisgl.server.api import make_api
from minisgl.server.connection import connection
from minisgl.server.desk import Desk
from minisgl.server.detokenize import Detokenize
from minisgl.server.generate import LOCATED, Generation, Recording
from minisgl.server.links import Links
from minisgl.server.options import ServerOptions
from minisgl.server.stage import Stage
from minisgl.server.tokenize import Tokenize
from minisgl.trace.record import Limits

_END: Final = 5.0  # seconds that the other processes get to end after the last request
_LAST_WORDS: Final = 2.0  # seconds that clients get to read why nothing more comes


def serve(model: str, config: EngineConfig, options: ServerOptions) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit code.

    0: every open request was answered or given up. 1: a process died, after saying which and why.
    2: it could not start, after saying why. Raises OSError if the address is
    taken, or nothing can be recorded where it should be.
    """
    _check_recording(options)
    with _listening(options) as listener, _links() as links:
        return asyncio.run(Server(model, config, options, listener, links).run())


class Server:
    """One server's processes. ``listener`` is bound already."""

    def __init__(
        self,
        model: str,
        config: EngineConfig,
        options: ServerOptions,
        listener: socket.socket,
        links: Links,
    ) -> None:
        self._model, self._config, self._options = model, config, options
        self._listener, self._links = listener, links
        self._name = options.served_model_name or Path(model).name or model
        self._stages: list[Stage] = []
        self._ending = False
        self._died: str | None = None
        self._code = 0

    async def run(self) -> int:
        """Start everything, serve, end everything."""
        links, context = self._links, zmq.Context[Any]()
        outbox: Outbox[Any] = Outbox(links.tokenizer, context)
        inbox: Inbox[Any] = Inbox(links.api, ToApi, context)
        self._desk = Desk(outbox.send, self._options.max_waiting)
        app = make_api(self._desk, self._options, self._name)
        self._http = _Http(
            uvicorn.Config(
                app,
                http=connection(self._options.stalled),
                ws="none",
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_keep_alive=30,
                server_header=False,
            )
        )
        work = (self._deliver(inbox), self._start())
        tasks = [asyncio.ensure_future(each) for each in work]
        for number in (signal.SIGTERM, signal.SIGINT):  # until all is ended
            asyncio.get_running_loop().add_signal_handler(number, self._signalled)
        try:
            await self._http.serve([self._listener])
        finally:
            self._ending = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._end()
            inbox.close()
            outbox.close(0)
            context.term()
        return self._code

    # ---- inside ----------------------------------------------------------------------------------

    @property
    def _recording(self) -> Recording | None:
        options = self._options
        if options.record_to is None:
            return None
        limits = Limits(options.record_size << 20, options.record_files)
        return Recording(Path(options.record_to).absolute(), limits, options.redact)

    async def _start(self) -> None:
        try:
            check = self._options.check_idle
            work = Generation(self._model, self._config, self._name, self._recording, check)
            folder = await self._located(self._add("engine", work))
            if folder is None:
                return
            self._add("tokenizer", Tokenize(folder))
            self._add("detokenizer", Detokenize(folder))
            self._desk.hello()
            await self._desk.is_ready.wait()
        except Exception as error:
            self._go_down(f"the server could not start: {error!r}", 1)
            raise
        ready = self._desk.check_up()
        host, port = self._listener.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        print(
            f"minisgl: {self._name} is ready at http://{host}:{port} (context {ready.max_seq_len}, "
            f"{ready.max_running} at a time)",
            flush=True,
        )

    def _add(self, name: str, work: Any) -> Stage:
        stage = Stage(name, work, self._links)
        self._stages.append(stage)
        loop = asyncio.get_running_loop()
        loop.add_reader(stage.sentinel, self._dead, stage)
        return stage

    async def _located(self, stage: Stage) -> Path | None:
        """The model's folder, as the engine process reports it; None if that died before."""
        while self._died is None:
            for report in stage.read():
                if report.startswith(LOCATED):
                    return Path(report.removeprefix(LOCATED))
            await asyncio.sleep(0.02)
        return None

    def _dead(self, stage: Stage) -> None:
        asyncio.get_running_loop().remove_reader(stage.sentinel)
        if self._ending:
            return
        stage.process.join(1.0)
        why = stage.failure()
        if why and stage.process.exitcode == 2 and self._desk.ready is None:
            self._go_down(why, 2)  # it could not be started as asked
        else:
            self._go_down(stage.death() + (f": {why}" if why else ""), 1)

    def _go_down(self, reason: str, code: int) -> None:
        if self._died is not None:
            return
        self._died, self._code = reason, code
        print(f"minisgl: {reason}", file=sys.stderr, flush=True)
        self._end_all(reason.splitlines()[0], 0.0)

    async def _deliver(self, inbox: Inbox[Any]) -> None:
        arrived: zmq.asyncio.Socket = zmq.asyncio.Socket.from_socket(inbox.socket)
        while True:
            frames = await arrived.recv_multipart()
            self._desk.take(inbox.read(frames))

    def _signalled(self) -> None:
        """The first signal lets open requests end while they may, a second one does not."""
        again = self._http.should_exit
        self._end_all("the server ends", 0.0 if again else self._options.drain)

    def _end_all(self, reason: str, patience: float) -> None:
        """Take nothing new; tell what is open after so long that it ends; then hang up."""
        self._http.should_exit = True
        self._desk.end_views(reason)
        loop = asyncio.get_running_loop()
        loop.call_later(patience, self._desk.fail, reason)
        loop.call_later(patience + _LAST_WORDS, self._http.hang_up)

    def _end(self) -> None:
        loop = asyncio.get_running_loop()
        for stage in self._stages:
            loop.remove_reader(stage.sentinel)
        if self._died is None and self._stages:
            self._desk.stop()
        for stage in self._stages:
            stage.end(_END if self._died is None and self._desk.ready else 0.0)


class _Http(uvicorn.Server):
    """uvicorn's, which leaves signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """They are heard by ``Server``."""
        yield

    def hang_up(self) -> None:
        """Cut off whoever is still connected."""
        for connected in list(self.server_state.connections):
            connected.transport.abort()


def _check_recording(options: ServerOptions) -> None:
    """Raise OSError, naming the file, if no file can be made where --record says."""
    if options.record_to is None:
        return
    path = Path(options.record_to).absolute()
    if path.is_dir():
        raise IsADirectoryError(f"--record needs a file, {path} is a folder")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OSError(f"--record cannot make {path}: no folder {path.parent} to write in")


@contextlib.contextmanager
def _listening(options: ServerOptions) -> Iterator[socket.socket]:
    """A socket that is bound and not yet listened at. Raises OSError that names the address."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, options.port))
        except OSError as error:
            raise OSError(
                f"cannot listen at {options.host}:{options.port}: {error.strerror or error}; "
                f"choose another --port, or 0 for a free one"
            ) from error
        yield listener


@contextlib.contextmanager
def _links() -> Iterator[Links]:
    links = Links.make()
    try:
        yield links
    finally:
        links.remove()
