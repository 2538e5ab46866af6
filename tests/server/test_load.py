"""Two hundred clients at once: no token lost or mixed up, memory flat, everybody alive."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from minisgl.core import SamplingParams
from minisgl.llm import LLM
from minisgl.tiny.words import NAMES
from tests.server.crowd import Asked, crowd
from tests.server.served import Served

CLIENTS, GROWTH = 200, 10 << 20


def questions(offline: LLM) -> list[Asked]:
    """Chats that share beginnings, short and long, and their greedy answers."""
    chats, lengths = [], []
    for i, name in enumerate(NAMES[:24]):
        chat = [{"role": "user", "content": f"Tell me a story about {name}."}]
        if i % 3 == 0:
            chat += [
                {"role": "assistant", "content": "Once upon a time there was a story. " * 12},
                {"role": "user", "content": f"Who is {name}?"},
            ]
        chats.append(chat)
        lengths.append((8, 24, 40, 90)[i % 4])
    samplings = [SamplingParams(max_tokens=n) for n in lengths]
    outputs = offline.generate(list(chats), samplings, progress=False)
    return [
        Asked(chat, n, out.text or "", len(out.token_ids))
        for chat, n, out in zip(chats, lengths, outputs, strict=True)
    ]


def memory(served: Served) -> dict[str, int]:
    """Resident bytes of each process."""
    found = {}
    for name, pid in {**served.pids, "api": served.process.pid}.items():
        status = Path(f"/proc/{pid}/status").read_text()
        found[name] = int(status.partition("VmRSS:")[2].split()[0]) * 1024
    return found


def load(offline: LLM, warm: float, seconds: float) -> None:
    asked = questions(offline)
    with Served("--check-idle", "--max-waiting", "100") as served:
        first = asyncio.run(crowd(served.port, asked, CLIENTS, warm))
        assert first.wrong == []
        before = memory(served)
        seen = asyncio.run(crowd(served.port, asked, CLIENTS, seconds))
        after = memory(served)
        print(f"\n{CLIENTS} clients, {seconds:g} s: {seen.figures()}")
        print({name: (before[name] >> 20, after[name] >> 20) for name in before}, "MiB")
        assert seen.wrong == []
        kinds = {"stream", "whole", "leave", "refused", "slow", "vanish", "429"}
        assert seen.counts.keys() == kinds and seen.counts["stream"] > 10 * seconds
        for name, size in after.items():
            assert size < before[name] + GROWTH, f"{name} grows: {before} to {after}"
        end = time.monotonic() + 20  # those that left are given up
        while open_requests(served):
            assert time.monotonic() < end, "requests are left open"
            time.sleep(0.1)
        assert served.children() == served.pids and served.err == []


def open_requests(served: Served) -> float:
    lines = httpx.get(f"{served.url}/metrics").text.splitlines()
    names = ("minisgl:num_requests_open{", "minisgl:num_requests_running{")
    return sum(float(line.split()[1]) for line in lines if line.startswith(names))


def test_two_hundred_clients_for_a_minute(offline: LLM) -> None:
    load(offline, 8, 45)


@pytest.mark.slow
def test_two_hundred_clients_for_five_minutes(offline: LLM) -> None:
    load(offline, 30, 300)
