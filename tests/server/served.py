"""A server in processes of its own, and what is left of it when it has ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import IO

_READY = re.compile(r"minisgl: (.*) is ready at (http://\S+) \(context (\d+), (\d+) at a time\)")
_PATIENCE = 120.0  # seconds: the machine may be busy


class Served:
    """``minisgl serve`` with these options. Leaving the block ends it; then nothing may be left."""

    def __init__(self, *options: str, model: str = "tiny", **environment: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="served-"))  # where its sockets are
        command = [sys.executable, "-m", "minisgl", "serve", "--model", model, "--port", "0"]
        environment = {**os.environ, "TMPDIR": str(self.folder), **environment}
        self.process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            Thread(target=self._read, args=(self.process.stdout, self.out), daemon=True),
            Thread(target=self._read, args=(self.process.stderr, self.err), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(pipe: IO[str], lines: list[str]) -> None:
        lines.extend(pipe)

    def __enter__(self) -> Served:
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
        elif self.process.poll() is None:
            assert self.end() == 0, self.said

    @property
    def said(self) -> str:
        """All it printed."""
        return "".join((*self.out, *self.err))

    def wait_ready(self) -> None:
        """Wait for its line; ``url`` is then known."""
        end = time.monotonic() + _PATIENCE
        while not (found := _READY.search("".join(self.out))):
            assert self.process.poll() is None, f"it ended: {self.said}"
            assert time.monotonic() < end, f"it is not ready: {self.said}"
            time.sleep(0.02)
        self.url = found[2]
        self.port = int(self.url.rpartition(":")[2])
        self.pids = self.children()

    def children(self) -> dict[str, int]:
        """The pids of its processes, by their order of start: engine, tokenizer, detokenizer."""
        pids = sorted(_children(self.process.pid))
        stages = [pid for pid in pids if "spawn_main" in _command(pid)]
        return dict(zip(("engine", "tokenizer", "detokenizer"), stages, strict=False))

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait; returns the exit code. Nothing may be left."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> int:
        """Wait for its end; returns the exit code. Nothing may be left."""
        code = self.process.wait(_PATIENCE)
        for reader in self._readers:
            reader.join(10)
        self.check_gone()
        return code

    def check_gone(self) -> None:
        """Assert that no process and no folder is left."""
        end = time.monotonic() + 20
        while left := [pid for pid in getattr(self, "pids", {}).values() if _alive(pid)]:
            assert time.monotonic() < end, f"{left} are left of {self.pids}: {self.said}"
            time.sleep(0.02)
        assert not list(self.folder.iterdir()), "its folder is left"
        self.folder.rmdir()

    def kill(self) -> None:
        """End it at once, whatever became of it; its children end with it."""
        self.process.kill()
        self.process.wait()


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return found


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
