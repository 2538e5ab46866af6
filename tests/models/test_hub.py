"""Names become folders, and every way that this can fail is said clearly and soon."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minisgl.models.hub import locate
from tests.models.random_checkpoints import checkpoint

ASK = """
import sys, time
from minisgl.models.hub import locate
import huggingface_hub
begin = time.perf_counter()
try:
    print("found", locate(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, error)
print(time.perf_counter() - begin)
"""


def ask(model: str, cache: Path, **environment: str) -> tuple[str, float]:
    """What ``locate`` answers in a fresh process with this hub environment, and how soon."""
    quiet = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k}
    full = quiet | {"HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"} | environment
    done = subprocess.run(
        [sys.executable, "-c", ASK, model], capture_output=True, text=True, check=True, env=full
    )
    answer, _, seconds = done.stdout.strip().rpartition("\n")
    return answer, float(seconds)


class _Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        _, _, name = self.path.rpartition("/")
        if name == "stuck":
            self.wfile.write(b"HTTP/1.0 200 OK\r\n")
            for _ in range(12):  # something each second: no timeout of a single read ends this
                self.wfile.write(b"X-Patience: please\r\n")
                time.sleep(1)
        code, reason = (401, "GatedRepo") if name == "gated" else (404, "RepoNotFound")
        self.send_response(code)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_folder_is_itself() -> None:
    folder = checkpoint("llama2").folder
    assert locate(str(folder)) == folder


@pytest.mark.parametrize(
    ("there", "says"),
    [([], "has no config.json"), (["config.json"], "neither model.safetensors nor")],
)
def test_a_folder_that_holds_no_model_says_what_is_missing(
    there: list[str], says: str, tmp_path: Path
) -> None:
    for name in there:
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match=says):
        locate(str(tmp_path))


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "../up", "/no/such/folder", "a b/c", "a/"])
def test_what_is_neither_folder_nor_id_is_said_without_asking(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no folder here, and no Hugging Face id"):
        locate(name)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ValueError, match="is a file; give the folder"):
        locate(str(tmp_path / "model.gguf"))


def cached(cache: Path, files: list[str]) -> Path:
    """A snapshot as an earlier download would have left it."""
    repository = cache / "hub" / "models--some--model"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for name in files:
        (snapshot / name).write_text("{}")
    return snapshot


def test_what_was_downloaded_before_is_found_offline(tmp_path: Path) -> None:
    snapshot = cached(tmp_path, ["config.json", "model.safetensors"])
    answer, seconds = ask("some/model", tmp_path, HF_HUB_OFFLINE="1")
    assert answer == f"found {snapshot}"
    assert seconds < 2


def test_a_download_that_was_cut_short_is_not_taken_for_a_model(tmp_path: Path) -> None:
    cached(tmp_path, ["config.json"])
    answer, _ = ask("some/model", tmp_path, HF_HUB_OFFLINE="1")
    assert answer.startswith("ConnectionError some/model was not downloaded before")


def test_offline_says_so_at_once(tmp_path: Path) -> None:
    answer, seconds = ask("some/model", tmp_path, HF_HUB_OFFLINE="1")
    assert answer.startswith("ConnectionError some/model was not downloaded before")
    assert "offline mode is enabled" in answer
    assert seconds < 2


def test_a_hub_that_refuses_connections_is_said_soon(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody answers here
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        answer, seconds = ask("some/model", tmp_path, HF_ENDPOINT=endpoint)
    assert answer.startswith("ConnectionError")
    assert "give a local folder or 'tiny'" in answer
    assert seconds < 6


def test_a_hub_that_never_comes_to_an_end_is_given_five_seconds(tmp_path: Path, hub: str) -> None:
    answer, seconds = ask("some/stuck", tmp_path, HF_ENDPOINT=hub)
    assert answer.startswith("ConnectionError")
    assert seconds < 6


def test_a_gated_model_says_where_to_accept_its_licence(tmp_path: Path, hub: str) -> None:
    answer, _ = ask("some/gated", tmp_path, HF_ENDPOINT=hub)
    assert answer.startswith("PermissionError some/gated is gated: accept its licence")


def test_an_unknown_model_is_said_to_be_unknown(tmp_path: Path, hub: str) -> None:
    answer, _ = ask("some/typo", tmp_path, HF_ENDPOINT=hub)
    assert answer.startswith("FileNotFoundError some/typo is neither a folder here nor a model")
