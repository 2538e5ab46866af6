"""The serving benchmark reads answers rightly and divides what belongs together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import sleep
from types import SimpleNamespace
from typing import Any

import pytest

from minisgl.bench import serving
from minisgl.llm import LLM


class Answering(BaseHTTPRequestHandler):
    """Answers late, in OpenAI's form."""

    tokens = 64

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
