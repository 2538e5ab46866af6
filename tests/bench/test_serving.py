"""The serving benchmark reads answers rightly and divides what belongs together."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import sleep
from types import SimpleNamespace
from typing import Any

import pytest

from minisgl.bench import report, serving
from minisgl.llm import LLM


class Answering(BaseHTTPRequestHandler):
    """Answers late, in OpenAI's form."""

    tokens = 64

    def do_GET(self) -> None:
        assert self.path == "/v1/models"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"data": [{"id": "fake"}]}')

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert asked["max_tokens"] == 64 and asked["temperature"] == 0
        self.send_response(200)
        self.end_headers()
        if not asked["stream"]:
            usage = {"completion_tokens": self.tokens}
            self.wfile.write(json.dumps({"choices": [], "usage": usage}).encode())
            return
        for delta in ({"role": "assistant", "content": ""}, {"content": "a"}, {"content": "b"}):
            chunk = {"choices": [{"delta": delta}]}
            text = json.dumps(chunk, separators=(",", ":"))
            self.wfile.write(f"data: {text}\n\n".encode())
            sleep(0.02)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def fake() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield SimpleNamespace(name="tiny", port=server.server_port, cpu=lambda: 0.0)
        server.shutdown()


def test_chats_are_all_different() -> None:
    asked = serving.chats(2000)
    assert len({chat[0]["content"] for chat in asked}) == 2000
    assert serving.chats(10) == asked[:10]


def test_the_first_text_is_timed_and_tokens_are_counted(fake: Any) -> None:
    took = serving.served(fake, serving.chats(3), streamed=True)
    assert took.tokens == 192 and took.speed == 192 / took.whole
    assert all(0.02 <= first < took.whole for first in took.first)
    assert serving.served(fake, serving.chats(3), streamed=False).first == (0.0,) * 3


def test_another_number_of_tokens_is_an_error(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answering, "tokens", 63)
    with pytest.raises(RuntimeError, match="another number of tokens came"):
        serving.served(fake, serving.chats(1), streamed=False)


def test_ratios_are_of_runs_of_the_same_round(fake: Any) -> None:
    def took(whole: float) -> serving.Took:
        return serving.Took(whole, (0.5, 0.1), 64, 1.0)

    ways = {"a": [took(1), took(2)], "b": [took(2), took(8)]}
    base, other = serving._lines(ways, 1, "a")
    assert base["of a"] == 1 and (other["from"], other["of a"], other["to"]) == (0.25, 0.375, 0.5)
    assert other["ttft_p50_ms"] == 300 and other["ttft_p99_ms"] == 500


def test_offline_makes_as_many_tokens() -> None:
    with LLM("tiny", threads=1) as llm:
        assert serving.offline(llm, serving.chats(4)).tokens == 4 * 64


FAKE = """
import sys
from http.server import ThreadingHTTPServer
from tests.bench.test_serving import Answering
assert sys.argv[2].endswith("model") and sys.argv[3] == "two words"
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answering).serve_forever()
"""


def test_any_server_may_be_measured_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    command = f"{sys.executable} {script} {{port}} {{model}} 'two words'"
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with serving.other(command) as made:
        assert made.name == "fake"
        took = serving.served(made, serving.chats(2), streamed=True)
        assert took.tokens == 128 and all(took.first) and made.cpu() > 0
    with serving.other(command, "said") as made:
        assert made.name == "said"


def test_a_command_without_a_port_or_that_ends_is_an_error() -> None:
    with pytest.raises(ValueError, match="says {port} where it listens"):
        serving.other("vllm serve")
    with pytest.raises(RuntimeError, match="the server did not start"):
        serving.other(f"{sys.executable} -c pass {{port}}")
    with pytest.raises(ValueError, match="--server is for the part serving"):
        list(report.run(("host",), others=["x {port}"]))
