"""Watching a server: what arrives is the run, and whoever watches badly harms nobody."""

from __future__ import annotations

import asyncio
import http.client
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import openai
import pytest

import minisgl
from minisgl.core import Added, Sampled, SamplingParams
from minisgl.engine.engine import Engine
from minisgl.inspector.served import Served as Watched
from minisgl.inspector.widget import Inspector
from minisgl.message.records import Generate, Order
from minisgl.server.generate import Service
from minisgl.server.watch import MOST_VIEWERS, Viewer
from minisgl.trace.file import Reading, parsed
from tests.engine.test_travel import facts
from tests.hash_engine import hash_engine
from tests.inspector.films import Seen, holds_against
from tests.server.served import Served

ADMIN = "an admin key"


@pytest.fixture(scope="module")
def watched() -> Iterator[Served]:
    with Served("--admin-key", ADMIN, "--no-overlap") as served:
        yield served


def ask(server: Served, text: str, tokens: int = 8) -> str:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        answer = client.completions.create(
            model="tiny", prompt=text, max_tokens=tokens, temperature=0
        )
    return answer.choices[0].text


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
    return value


def leave(view: Inspector) -> None:
    cast(Watched, view.runs[0]).close()
    view.close()


def commanded(view: Inspector, **command: Any) -> dict[str, Any]:
    said: list[dict[str, Any]] = []
    setattr(view, "send", lambda content, buffers=None: said.append(content))  # noqa: B010
    view._on_message(None, {"id": 1, **command}, [])
    return next(content for content in said if "done" in content)


def test_what_is_served_is_seen_step_by_step_with_its_text(watched: Served, tmp_path: Path) -> None:
    ask(watched, "Before anybody looked")
    view = minisgl.attach(watched.url, admin_key=ADMIN)
    text = ask(watched, "Once upon a time there was a clever fox named Mia.", 12)
    until(lambda: any("ends" in repr(record) for record in view.trace))
    view.refresh()
    first = view.trace.history.first
    assert first > 0 and view.cursor == len(view.trace) - 1
    seen = Seen().read(view.get_state()["films"][0])
    holds_against(view.trace, seen)
    rid = max(row.rid for record in view.trace for row in record.batch.rows)
    events = [event for record in view.trace for event in record.events]
    ids = [event.token for event in events if isinstance(event, Sampled) and event.rid == rid]
    assert view.trace.decode is not None and view.trace.decode(ids) == text
    assert view.trace.explain(rid).finished
    view.trace.save_html(tmp_path / "served.html")
    leave(view)


def test_with_the_admin_key_it_is_paused_stepped_and_resumed(watched: Served) -> None:
    view = minisgl.attach(watched.url, admin_key=ADMIN)
    assert commanded(view, do="pause")["error"] is None
    assert view.status["runs"][0]["served"] == {"paused": True}
    before = len(view.trace)
    sent = http.client.HTTPConnection("127.0.0.1", watched.port)
    body = b'{"model": "tiny", "prompt": "Once", "max_tokens": 4, "ignore_eos": true}'
    sent.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    time.sleep(0.5)
    assert len(view.trace) == before
    assert commanded(view, do="step")["error"] is None
    until(lambda: len(view.trace) == before + 1)
    assert "prefill" in repr(view.trace[-1])
    assert "can be paused, stepped and watched" in commanded(view, do="rewind", to=0)["error"]
    assert commanded(view, do="run", steps=1)["error"] is None
    until(lambda: len(view.trace) == before + 2)
    assert commanded(view, do="resume")["error"] is None
    assert sent.getresponse().status == 200
    until(lambda: len(view.trace) >= before + 4)
    leave(view)


def test_without_it_nothing_that_was_said_is_seen_and_nothing_ordered(watched: Served) -> None:
    with Watched(watched.url) as seen:
        ask(watched, "A secret about Mia", 5)
        until(lambda: any("ends" in repr(record) for record in seen.trace))
        assert seen.trace.decode is None
        with minisgl.load("tiny") as engine:
            said = engine.codec.encode("A secret about Mia") if engine.codec else []
        for item in seen.trace.history.inputs(0, seen.trace.history.num_inputs):
            assert tuple(said) != getattr(item, "prompt", None)
        with pytest.raises(PermissionError, match="to pause it needs the admin key"):
            seen.pause()


def test_a_wrong_key_and_a_wrong_address_are_said(watched: Served) -> None:
    with pytest.raises(PermissionError, match="this needs the admin key"):
        Watched(watched.url, admin_key="guessed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConnectionError, match=f"no minisgl server answers at .*{port}"):
        Watched(f"http://127.0.0.1:{port}")
    with pytest.raises(ValueError, match="url must be like"):
        Watched("file:///etc/passwd")


def test_a_viewer_that_never_reads_slows_nobody(watched: Served) -> None:
    dead = socket.create_connection(("127.0.0.1", watched.port))
    dead.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    dead.sendall(b"GET /watch HTTP/1.1\r\nhost: x\r\n\r\n")
    time.sleep(0.3)
    for _ in range(20):
        ask(watched, "Once upon a time", 40)
    dead.close()
    ask(watched, "Once upon a time", 4)


def test_the_end_of_the_server_is_seen() -> None:
    with Served("--admin-key", ADMIN) as served:
        view = minisgl.attach(served.url, admin_key=ADMIN)
        ask(served, "Once", 3)
        until(lambda: len(view.trace) > 0)
        kept = len(view.trace)
        assert served.end() == 0
        until(lambda: cast(Watched, view.runs[0]).closed)
    view.refresh()
    assert view.status["runs"][0]["closed"] and len(view.trace) >= kept
    assert commanded(view, do="step")["error"]


# ---- the parts, without processes ----------------------------------------------------------------


def generate(service: Service, rid: int, prompt: tuple[int, ...]) -> None:
    sampling = SamplingParams(max_tokens=6, ignore_eos=True)
    service.take([Generate(rid, prompt, sampling)])


def read(service: Service, readings: dict[int, Reading]) -> None:
    for said in service.gallery.said():
        reading = readings.setdefault(said.key, Reading(f"key {said.key}"))
        for line in said.lines.splitlines():
            reading.take(parsed(line.encode()), len(line))


def test_who_comes_at_any_moment_sees_the_run_from_there_on() -> None:
    engine: Engine = hash_engine(num_pages=60, page_size=2)
    service, readings = Service(engine), dict[int, Reading]()
    for step in range(60):
        if step % 4 == 0:
            generate(service, step, (1 + step % 5,) * (3 + step % 6))
        if step in (0, 7, 20, 33):
            service.take([Order(100 + step, "watch", {"key": step, "redact": step == 20})])
        service.step()
        read(service, readings)
    service.take([Order(1, "unwatch", {"key": 7})])
    assert sorted(readings) == [0, 7, 20, 33]
    whole = facts(list(engine.trace))
    for key in (0, 7, 33):
        history = readings[key].history
        first, *rest = facts(list(history.records))
        assert rest == whole[history.first + 1 :]
        # whoever came before is in the state already
        want = [event for event in whole[history.first][3] if not isinstance(event, Added)]
        assert [event for event in first[3] if not isinstance(event, Added)] == want
    hidden = readings[20].history
    assert len(hidden) == len(engine.trace)
    assert [r.gauges for r in hidden.records] == [
        r.gauges for r in list(engine.trace)[hidden.first :]
    ]
    for key in (0, 20, 33):
        service.take([Order(1, "unwatch", {"key": key})])
    assert engine.listeners == [] and engine.observers == []


def test_a_paused_engine_lets_in_who_wants_to_look() -> None:
    engine = hash_engine()
    service, readings = Service(engine), dict[int, Reading]()
    generate(service, 0, (1, 2, 3))
    service.step()
    service.take([Order(1, "pause", {}), Order(2, "watch", {"key": 5, "redact": False})])
    while service.busy:
        service.step()
    read(service, readings)
    assert readings[5].header.vocab_size == engine.vocab_size
    assert service.engine.busy and service.paused


def test_there_are_only_so_many_places() -> None:
    service = Service(hash_engine())
    for key in range(MOST_VIEWERS + 1):
        service.take([Order(key, "watch", {"key": key, "redact": True})])
    *others, last = service.reports()
    assert all(report.error is None for report in others)
    assert last.error == f"{MOST_VIEWERS} watch already; end another view first"


def test_a_mailbox_that_nobody_empties_is_bounded() -> None:
    async def told() -> list[str]:
        viewer = Viewer()
        for _ in range(40):
            viewer.put("x" * (1 << 20) + "\n")
        return [event async for event in viewer.events()]

    (only,) = asyncio.run(asyncio.wait_for(told(), 5))
    assert only == "event: end\ndata: this view fell 16 MB behind; open another\n\n"
