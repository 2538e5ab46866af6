"""Keys, bounds, slow and vanished clients, and an administrator: on a server with small bounds."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import minisgl
from minisgl.core import Finished
from minisgl.trace import Trace
from minisgl.trace.divergence import divergence
from tests.server.served import Served
from tests.server.test_refusals import error_of

KEY, ADMIN = {"authorization": "Bearer open"}, {"authorization": "Bearer sesame"}
LONG = {"prompt": [7] * 20, "max_tokens": 4000, "ignore_eos": True, "temperature": 0}
SHORT = {"prompt": [7] * 20, "max_tokens": 2, "temperature": 0}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recording") / "hour.jsonl"


@pytest.fixture(scope="module")
def small(recording: Path) -> Iterator[Served]:
    options = ["--admin-key", "sesame", "--max-waiting", "4", "--max-running", "4"]
    options += ["--max-body", "5000", "--keep-alive", "0.3", "--stalled", "2", "--check-idle"]
    options += ["--record", str(recording), "--served-model-name", "small"]
    with Served(*options, MINISGL_API_KEY="open") as served:
        yield served


@pytest.fixture
def api(small: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=small.url, headers=KEY, timeout=60) as made:
        yield made
        until(lambda: stands(made)["requests"] == [], "something is left open")


def stands(api: httpx.Client) -> Any:
    return api.get("/admin/config", headers=ADMIN).json()


def order(api: httpx.Client, verb: str, **given: Any) -> Any:
    answer = api.post(f"/admin/{verb}", headers=ADMIN, json=given or None)
    assert answer.status_code == 200, answer.text
    return answer.json()


def until(holds: Callable[[], bool], says: str, patience: float = 20.0) -> None:
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end, says
        time.sleep(0.01)


@pytest.fixture
def paused(api: httpx.Client) -> Iterator[httpx.Client]:
    order(api, "pause")
    yield api
    order(api, "abort")
    order(api, "resume")


def connect(served: Served, body: dict[str, Any] | bytes) -> socket.socket:
    """A request of which nothing is read yet."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    made = socket.create_connection(("127.0.0.1", served.port), timeout=30)
    made.sendall(head(len(data)) + data)
    return made


def head(length: int) -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", "host: x", "authorization: Bearer open"]
    lines += ["content-type: application/json", f"content-length: {length}", "connection: close"]
    return "\r\n".join([*lines, "", ""]).encode()


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


# ---- a recording, from the beginning -------------------------------------------------------------


def test_a_recording_replays_to_the_same_plans_and_tokens(
    api: httpx.Client, small: Served, recording: Path
) -> None:
    def ask(i: int) -> None:
        sampling = {"temperature": i % 2, "max_tokens": 5 + 7 * (i % 4), "logprobs": i % 3}
        body = {"prompt": [7 + i % 3] * (20 + i), "ignore_eos": True, **sampling}
        if i % 4 == 3:
            body["max_tokens"] = 3000
        with connect(small, {"stream": True, **body}) as connection:
            if i % 4 == 3:
                connection.recv(1)  # and go
            else:
                read_all(connection)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(24)))
    until(lambda: stands(api)["requests"] == [], "they were left")
    order(api, "record", on=False)
    trace = Trace.load(recording)
    ends = Counter(e.reason for r in trace for e in r.events if isinstance(e, Finished))
    assert len(trace) > 40 and ends == {"length": 18, "abort": 6}
    with minisgl.replay(trace) as again:
        assert divergence(trace, again.trace) is None
        assert [r.plan.rows for r in again.trace] == [r.plan.rows for r in trace]
    order(api, "record", on=True)


# ---- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", ["", "open", "Bearer", "Bearer nope", "Basic open", "Bearer ключ", "Bearer \xff"]
)
def test_without_the_key_only_health_answers(given: str, small: Served) -> None:
    headers = {b"authorization": given.encode()} if given else {}
    assert httpx.get(f"{small.url}/health").status_code == 200
    for path in ("/v1/models", "/metrics", "/openapi.json", "/admin/config", "/nothing"):
        answer = httpx.get(small.url + path, headers=headers)
        assert answer.status_code == 401 and "key" in error_of(answer)["message"]
        assert answer.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/completions", "/tokenize", "/admin/pause"):
        answer = httpx.post(small.url + path, headers=headers, json=SHORT)
        assert answer.status_code == 401


def test_each_key_opens_its_own_door_alone(small: Served) -> None:
    assert httpx.get(f"{small.url}/v1/models", headers=KEY).status_code == 200
    assert httpx.get(f"{small.url}/v1/models", headers=ADMIN).status_code == 401
    assert httpx.get(f"{small.url}/admin/config", headers=ADMIN).status_code == 200
    assert httpx.get(f"{small.url}/admin/config", headers=KEY).status_code == 401


# ---- bounds --------------------------------------------------------------------------------------


def test_a_body_beyond_the_bound_is_refused_whether_or_not_it_says_its_length(
    api: httpx.Client,
) -> None:
    body = json.dumps({"prompt": "x" * 6000}).encode()
    headers = {"content-type": "application/json"}
    for content in (body, iter([body[:3000], body[3000:]])):
        answer = api.post("/v1/completions", content=content, headers=headers)
        assert answer.status_code == 413 and "5000 bytes" in error_of(answer)["message"]


def test_who_sends_much_too_much_is_told_so_while_he_sends(small: Served) -> None:
    for key, status in (("open", 413), ("wrong", 401)):
        with socket.create_connection(("127.0.0.1", small.port), timeout=30) as made:
            asked = head(8 << 20).replace(b"Bearer open", b"Bearer " + key.encode())
            made.sendall(asked + b" " * (8 << 20))
            assert read_all(made).startswith(b"HTTP/1.1 %d " % status)
        with socket.create_connection(("127.0.0.1", small.port), timeout=30) as made:
            made.sendall(head(1 << 40).replace(b"Bearer open", b"Bearer " + key.encode()))
            assert read_all(made).startswith(b"HTTP/1.1 %d " % status)


def test_what_would_wait_beyond_the_bound_is_refused_with_retry_after(
    paused: httpx.Client, small: Served
) -> None:
    waiting = [connect(small, SHORT) for _ in range(8)]  # four may run, four may wait
    until(lambda: len(stands(paused)["requests"]) == 8, "eight should wait")
    answer = paused.post("/v1/completions", json=SHORT)
    assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
    assert "at most 4 may wait" in error_of(answer)["message"]
    order(paused, "resume")
    for connection in waiting:
        assert b"200 OK" in read_all(connection)
    assert paused.post("/v1/completions", json=SHORT).status_code == 200
    answer = paused.post("/v1/completions", json={**SHORT, "n": 5})
    assert answer.status_code == 400, "five can never wait, so trying again would not help"


# ---- clients that are slow, or go ----------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_ends_its_request(
    stream: bool, api: httpx.Client, small: Served
) -> None:
    gone = connect(small, {**LONG, "stream": stream})
    until(lambda: stands(api)["running"] == 1, "it should run")
    gone.close()
    until(lambda: stands(api)["running"] == 0, "nobody reads it, and it runs", 5)
    before = stands(api)["next_step"]
    assert before < 4000
    assert stands(api)["next_step"] == before, "an idle engine does not step"


def test_a_client_that_goes_while_its_request_waits_leaves_nothing(
    paused: httpx.Client, small: Served
) -> None:
    gone = [connect(small, {**LONG, "stream": bool(i % 2)}) for i in range(4)]
    until(lambda: len(stands(paused)["requests"]) == 4, "four should wait")
    for connection in gone:
        connection.close()
    order(paused, "step", steps=3)
    until(lambda: stands(paused)["waiting"] == 0, "nobody waits for them")
    order(paused, "resume")
    assert paused.post("/v1/completions", json=SHORT).status_code == 200


def test_a_client_that_does_not_read_holds_up_nobody_and_is_dropped(
    api: httpx.Client, small: Served
) -> None:
    data = json.dumps({**LONG, "stream": True, "n": 4, "logprobs": 20}).encode()
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", small.port))
    slow.sendall(head(len(data)) + data)
    until(lambda: stands(api)["running"] == 4, "it should run")
    for _ in range(3):
        assert api.post("/v1/completions", json=SHORT).status_code == 200
    until(lambda: not stands(api)["requests"], "it should be dropped", 60)
    slow.settimeout(20)
    with slow:
        assert b"[DONE]" not in read_all(slow), "it was cut off"


def test_a_client_that_sends_byte_by_byte_is_served(api: httpx.Client, small: Served) -> None:
    data = json.dumps(SHORT).encode()
    with socket.create_connection(("127.0.0.1", small.port), timeout=30) as slow:
        for byte in head(len(data)) + data:
            slow.sendall(bytes([byte]))
        got = read_all(slow)
    want = api.post("/v1/completions", json=SHORT).json()["choices"]
    assert b"200 OK" in got and json.loads(got.partition(b"\r\n\r\n")[2])["choices"] == want


def test_a_body_that_does_not_come_is_given_up(small: Served) -> None:
    with socket.create_connection(("127.0.0.1", small.port), timeout=30) as slow:
        slow.sendall(head(100) + b"{")
        assert b"408 " in read_all(slow)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", 408),
        (b"GET /health HTTP/1.1\r\nhost:", 408),
        (b"GET /health HTTP/1.1\r\nx: " + b"a" * 70_000, 431),
        (b"GET /" + b"a" * 70_000, 431),
        (b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 20_000, 431),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01", 400),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_head_that_is_slow_long_or_none_is_refused_in_openais_form(
    sent: bytes, status: int, small: Served
) -> None:
    with socket.create_connection(("127.0.0.1", small.port), timeout=30) as made:
        made.sendall(sent)
        got = read_all(made)
    assert got.startswith(b"HTTP/1.1 %d " % status)
    error_of(httpx.Response(status, content=got.partition(b"\r\n\r\n")[2]))


def test_a_connection_may_ask_again_after_a_while(small: Served) -> None:
    ask = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", small.port), timeout=30) as made:
        for pause in (3.0, 0.0):  # a head may take two seconds; there is none meanwhile
            made.sendall(ask)
            got = b""
            while not got.endswith(b"}"):
                assert (part := made.recv(1 << 16)), got
                got += part
            assert b"200 OK" in got
            time.sleep(pause)


def test_a_stream_that_waits_shows_that_it_lives(paused: httpx.Client, small: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(lambda: read_all(connect(small, {**SHORT, "stream": True})))
        until(lambda: len(stands(paused)["requests"]) == 1, "it should wait")
        time.sleep(1.0)
        order(paused, "resume")
        text = whole.result(30).decode()
    assert 2 <= text.count(": keep-alive\n\n") <= 4
    assert text.index(": keep-alive") < text.index("data: {") and "data: [DONE]" in text


# ---- an administrator ----------------------------------------------------------------------------


def test_a_paused_engine_steps_as_often_as_it_is_told(paused: httpx.Client, small: Served) -> None:
    waiting = connect(small, {**SHORT, "max_tokens": 6, "stream": True})
    until(lambda: len(stands(paused)["requests"]) == 1, "it should wait")
    first = stands(paused)
    assert first["paused"] and first["requests"][0]["state"] == "waiting"
    order(paused, "step", steps=2)
    until(lambda: stands(paused)["requests"][0]["generated_tokens"] == 2, "two steps, two tokens")
    (request,) = stands(paused)["requests"]
    assert request["state"] == "running" and request["prompt_tokens"] == 20
    order(paused, "resume")
    assert b"[DONE]" in read_all(waiting)
    refused = paused.post("/admin/step", headers=ADMIN, json={"steps": 1})
    assert refused.status_code == 400 and "not paused" in error_of(refused)["message"]


def test_an_aborted_request_ends_with_an_error(paused: httpx.Client, small: Served) -> None:
    bodies = [{**LONG, "stream": False}, {**LONG, "stream": True}]
    connections = [connect(small, body) for body in bodies]
    until(lambda: len(stands(paused)["requests"]) == 2, "both should wait")
    order(paused, "step", steps=3)
    rids = [request["rid"] for request in stands(paused)["requests"]]
    order(paused, "abort", rids=rids)
    order(paused, "resume")
    whole, streamed = map(read_all, connections)
    assert b"503 Service Unavailable" in whole and b"aborted by an administrator" in whole
    assert b"200 OK" in streamed and b'data: {"error":' in streamed
    assert b'"code":"aborted"' in streamed and streamed.rstrip().endswith(b"0")  # the last chunk


def test_a_flushed_cache_finds_nothing_and_is_refused_while_requests_run(
    api: httpx.Client, small: Served
) -> None:
    def cached() -> int:
        body = {**SHORT, "prompt": [9] * 33}
        used = api.post("/v1/completions", json=body).json()["usage"]
        return int(used["prompt_tokens_details"]["cached_tokens"])

    cached()
    assert cached() == 32
    assert order(api, "flush_cache")["cached_pages"] == 0
    assert cached() == 0
    running = connect(small, LONG)
    until(lambda: stands(api)["running"] == 1, "it should run")
    refused = api.post("/admin/flush_cache", headers=ADMIN)
    assert refused.status_code == 400 and "once no request runs" in error_of(refused)["message"]
    running.close()


def test_the_configuration_is_told(api: httpx.Client) -> None:
    told = stands(api)["config"]
    assert told["admission"] == "optimistic" and told["max_running"] == 4
    assert told["num_pages"] == 4096
    answer = api.post("/v1/completions", json={**SHORT, "model": "small"})
    assert answer.json()["model"] == "small"


def test_a_recording_is_ended_begun_and_loads_as_what_happened(
    api: httpx.Client, recording: Path
) -> None:
    assert stands(api)["recording"] == {"on": True, "file": str(recording), "failed": None}
    order(api, "record", on=False)
    first = Trace.load(recording)
    assert len(first) == stands(api)["next_step"] > 0 and first.model == "tiny"
    order(api, "record", on=True)
    asked = {**SHORT, "max_tokens": 5, "ignore_eos": True, "stop": "zzz"}
    rid = int(api.post("/v1/completions", json=asked).json()["id"][-8:], 16)
    order(api, "record", on=False)
    then = Trace.load(recording)
    assert then.history.first == len(first) and len(then) == len(first) + 5
    assert then.explain(rid) and len(then.story(rid)) > 3
    tokens = [record.outcome.tokens[0] for record in then]
    answer = api.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    assert api.post("/v1/completions", json=asked).json()["choices"][0]["text"] == answer
    assert len(Trace.load(recording.with_suffix(".1.jsonl"))) == len(first)
    assert stands(api)["recording"]["on"] is False
    order(api, "record", on=True)
