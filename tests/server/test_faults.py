"""What breaks ends clearly: with a reason, an exit code and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import zmq

from tests.executor.processes import children_of, wait_until_ended
from tests.server.served import Served
from tests.server.test_bounds import connect, read_all

LONG = {"prompt": [7] * 20, "max_tokens": 4000, "ignore_eos": True, "temperature": 0}
STREAM = {**LONG, "stream": True}
STAGES = ("engine", "tokenizer", "detokenizer")


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Served]]:
    """One to be killed for each process, all started at once."""
    started = {name: Served() for name in (*STAGES, "api", "drain")}
    started |= {"late": Served("--drain", "0.5"), "twice": Served("--drain", "60")}
    try:
        with ThreadPoolExecutor(len(started)) as pool:
            list(pool.map(Served.wait_ready, started.values()))
        yield started
    finally:
        for served in started.values():
            if served.process.poll() is None:
                served.kill()


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_process_takes_the_server_down_with_its_reason(
    stage: str, servers: dict[str, Served]
) -> None:
    served = servers[stage]
    open_ones = [connect(served, body) for body in (STREAM, LONG)]
    open_ones[0].recv(1)
    os.kill(served.pids[stage], signal.SIGKILL)
    streamed, whole = map(read_all, open_ones)
    assert b'"error"' in streamed and b"[DONE]" in streamed
    assert b"503 Service Unavailable" in whole and b"SIGKILL" in whole
    assert served.ended() == 1
    reason = f"the {stage} process (pid {served.pids[stage]}) died, ended by SIGKILL"
    assert reason in served.said and "Traceback" not in served.said


def test_the_others_end_with_a_killed_api(servers: dict[str, Served]) -> None:
    served = servers["api"]
    connection = connect(served, STREAM)
    connection.recv(1)
    os.kill(served.process.pid, signal.SIGKILL)
    assert served.ended() == -signal.SIGKILL
    with connection, pytest.raises((ConnectionError, TimeoutError)):
        while connection.recv(1 << 16):
            pass
        raise ConnectionResetError("it was closed")


def test_a_signal_lets_open_requests_end_and_no_new_one_begin(servers: dict[str, Served]) -> None:
    """The signal goes to every process, as a service manager sends it."""
    served = servers["drain"]
    body = {**STREAM, "max_tokens": 1500}
    open_ones = [connect(served, {**body, "stream": stream}) for stream in (True, False)]
    open_ones[0].recv(1)
    for pid in (*served.pids.values(), served.process.pid):
        os.kill(pid, signal.SIGTERM)
    until_refused(served.port)
    streamed, whole = map(read_all, open_ones)
    assert b"[DONE]" in streamed and b'"finish_reason":"length"' in streamed
    assert json.loads(whole.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 1500
    assert served.ended() == 0 and served.err == []


@pytest.mark.parametrize(("name", "signals"), [("late", 1), ("twice", 2)])
def test_after_the_time_to_drain_or_a_second_signal_all_are_told_that_the_server_ends(
    name: str, signals: int, servers: dict[str, Served]
) -> None:
    """Those who do not read, or send half of a request, are cut off."""
    served = servers[name]
    open_ones = [connect(served, {**LONG, "stream": stream, "n": 8}) for stream in (True, False)]
    open_ones[0].recv(1)
    deaf = connect(served, {**STREAM, "n": 16, "logprobs": 20})
    half = socket.create_connection(("127.0.0.1", served.port))
    half.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{")
    began = time.monotonic()
    for _ in range(signals):
        served.process.send_signal(signal.SIGTERM)
        until_refused(served.port)  # or two signals may become one
    streamed, whole = map(read_all, open_ones)
    assert b'"message":"the server ends"' in streamed and b"[DONE]" in streamed
    assert b"503 Service Unavailable" in whole and b'"message":"the server ends"' in whole
    assert served.ended() == 0 and served.err == []
    assert time.monotonic() - began < 40, "nobody waited for the time to drain"
    deaf.close()
    half.close()


def until_refused(port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.01)
    raise AssertionError("it still listens")


def frames() -> list[list[bytes]]:
    """What no stage ever sends: noise, other types, wrong fields, too many frames, huge sizes."""
    encode = msgspec.msgpack.encode
    good = ["Cancel", 3]
    return [
        [b""],
        [b"\xff" * 100],
        [os.urandom(1000)],
        [encode("text")],
        [encode(good)],
        [encode([["Nobody", 1]])],
        [encode([["Cancel", "3"]])],
        [encode([["Cancel", 3, 4]])],
        [encode([["Cancel"]])],
        [encode([good]), encode([good])],
        [b"\xdd\xff\xff\xff\xff"],  # an array of four billion, of which nothing comes
        [b"\x91" * 100_000],
        [encode([["Ask", [1], ["Text", "x"], {"temperature": -1}]])],
        [encode([["Generate", -1, [1], {}, False, False]])],
        [encode([["Over", 1, "nonsense", False, None, 0, None, None]])],
        [encode([["Piece", 10**6, "x", 1, [], None]])],
        [encode([["Token", 10**6, 1, None]])],
        [encode([["Generate", 0, [1], {}, False, False]])],  # a number that was used before
        [encode([["Reported", 10**6, None, None]])],
    ]


def test_frames_that_nobody_should_send_are_dropped(server: Served) -> None:
    (folder,) = server.folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    context: Any = zmq.Context()
    asked: dict[str, Any] = {"prompt": [7] * 9, "max_tokens": 5, "temperature": 0}
    before = httpx.post(f"{server.url}/v1/completions", json=asked).json()["choices"]
    for name in ("tokenizer", "engine", "detokenizer", "api"):
        with context.socket(zmq.PUSH) as stranger:
            stranger.connect(f"ipc://{folder / name}")
            for parts in frames():
                stranger.send_multipart(parts)
            stranger.close(1000)
        after = httpx.post(f"{server.url}/v1/completions", json=asked).json()["choices"]
        assert after == before
    context.term()
    end = time.monotonic() + 10
    while not all(f"{n}: a message" in server.said for n in ("tokenizer", "engine", "api")):
        assert time.monotonic() < end, server.said
        time.sleep(0.02)
    assert "Traceback" not in server.said and server.process.poll() is None


def test_a_port_that_is_taken_is_told_at_once(server: Served) -> None:
    command = [sys.executable, "-m", "minisgl", "--port", str(server.port)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and run.stdout == ""
    assert f"cannot listen at 127.0.0.1:{server.port}: Address already in use" in run.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--record", "/no/such/folder/x"], "--record cannot make /no/such/folder/x: no folder"),
        (["--record", "/"], "--record needs a file, / is a folder"),
        (["--host", "nowhere.invalid"], "cannot listen at nowhere.invalid:0: "),
        (["--keep-alive", "0"], "keep_alive must be at least 0.001, got 0.0"),
        (["--tp", "3"], "tp=3 was asked; the model's 4 attention heads"),
        (["--model", "/nowhere"], "'/nowhere' is no folder here"),
    ],
)
def test_what_cannot_be_served_as_asked_is_told_in_one_line(options: list[str], says: str) -> None:
    command = [sys.executable, "-m", "minisgl", "--port", "0", *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith(f"minisgl: {says}") and run.stderr.count("\n") == 1


def test_a_signal_while_loading_ends_it_at_once() -> None:
    served = Served()
    while not served.children():  # the engine's process; it needs seconds to load
        assert served.process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)
    began = time.monotonic()
    assert served.end() == 0 and served.said == ""
    assert time.monotonic() - began < 5


def test_a_lost_rank_ends_the_server_with_its_reason() -> None:
    served = Served("--tp", "2")
    served.wait_ready()
    ranks = children_of(served.pids["engine"])
    with connect(served, STREAM) as open_one:
        open_one.recv(1)
        os.kill(max(ranks), signal.SIGKILL)
        streamed = read_all(open_one)
    assert b'"error"' in streamed and b"was killed by SIGKILL" in streamed
    assert served.ended() == 1
    assert "the engine process" in served.said and "was killed by SIGKILL" in served.said
    wait_until_ended(ranks)


@pytest.mark.slow
def test_a_full_disk_ends_the_recording_and_not_the_server(tmp_path: Path) -> None:
    path = tmp_path / "full.jsonl"
    with Served("--record", str(path), "--admin-key", "k") as served:
        import resource

        resource.prlimit(served.pids["engine"], resource.RLIMIT_FSIZE, (20_000, 20_000))
        with httpx.Client(base_url=served.url, timeout=60) as api:
            for _ in range(30):
                answer = api.post("/v1/completions", json={**LONG, "max_tokens": 20})
                assert answer.status_code == 200
            headers = {"authorization": "Bearer k"}
            told = api.get("/admin/config", headers=headers).json()["recording"]
        assert told["on"] is False and "File too large" in told["failed"]
        assert path.stat().st_size <= 20_000
