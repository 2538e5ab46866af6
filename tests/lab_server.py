"""A JupyterLab of its own for a test: ``minisgl lab`` on a free port, with settings of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

TOKEN = "a-word-that-only-the-test-knows"
_PATIENCE = 60  # seconds that a busy machine may take


def free_port() -> int:
    """A port of the loopback that nobody listens at right now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Server:
    """A running JupyterLab. root: what it serves; log: what it said."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, root: Path, log: Path) -> None:
        self.process, self.root, self._log = process, root, log
        self.address = f"http://127.0.0.1:{port}"

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def ask(self, path: str, *, method: str = "GET", token: str | None = TOKEN) -> Any:
        """What the server's REST interface answers, None if nothing; HTTPError if it refuses."""
        headers = {} if token is None else {"Authorization": f"token {token}"}
        with urlopen(Request(self.address + path, method=method, headers=headers)) as answer:
            return json.loads(answer.read() or "null")

    def wait_until_it_answers(self) -> None:
        """Raises RuntimeError, with the log, if it ended or stays silent."""
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until and self.process.poll() is None:
            try:
                self.ask("/api/status")
                return
            except URLError:
                time.sleep(0.1)
        raise RuntimeError(f"no JupyterLab at {self.address}:\n{self.log}")

    def stop_kernels(self) -> None:
        for session in self.ask("/api/sessions"):
            self.ask(f"/api/sessions/{session['id']}", method="DELETE")


@contextmanager
def serve(root: Path, private: Path, further: Sequence[str] = ()) -> Iterator[Server]:
    """Serve ``root``, which ends with the block. private: an empty folder for the server's files,
    so that it finds no settings of the user and leaves none. further: for jupyter lab."""
    settings = private / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    no_news = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(no_news))
    folders = {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
        "MPLCONFIGDIR": "matplotlib",
    }
    environment = os.environ | {name: str(private / leaf) for name, leaf in folders.items()}
    port, log = free_port(), private / "log"
    words = [sys.executable, "-m", "minisgl", "lab", str(root), "--no-browser", "--allow-root"]
    words += [f"--port={port}", f"--token={TOKEN}", "--", "--ServerApp.port_retries=0", *further]
    with log.open("wb") as said:
        process = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    server = Server(process, port, root, log)
    try:
        server.wait_until_it_answers()
        yield server
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
