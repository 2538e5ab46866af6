"""A crowd of clients, each over sockets of its own: most are well behaved, some are not.

Every text that comes back whole is compared with what the model says offline.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from time import perf_counter
from typing import Any, NamedTuple

# how often, of a hundred requests
_KINDS = {"stream": 66, "whole": 12, "leave": 9, "refused": 6, "slow": 5, "vanish": 2}
_BAD: tuple[dict[str, Any], ...] = (
    {"temperature": -1},
    {"tools": [{}]},
    {"messages": []},
    {"max_tokens": "many"},
    {"model": "another"},
)


class Asked(NamedTuple):
    """A request and the only right answer to it."""

    messages: list[dict[str, str]]
    max_tokens: int
    text: str
    num_tokens: int


@dataclass
class Seen:
    """What the crowd has seen. Seconds."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # to the first text, of streams
    between: list[float] = field(default_factory=list)  # a stream's mean per further token
    tokens: int = 0
    seconds: float = 0.0

    def figures(self) -> str:
        """In one line."""
        ttft, itl = _percentiles(self.first), _percentiles(self.between)
        return (
            f"{self.tokens / self.seconds:.0f} tokens/s; TTFT ms p50 {ttft[0]:.0f} p99 "
            f"{ttft[1]:.0f}; ITL ms p50 {itl[0]:.1f} p99 {itl[1]:.1f}; {dict(self.counts)}"
        )


def _percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(seconds) or [0.0]
    return ordered[len(ordered) // 2] * 1e3, ordered[len(ordered) * 99 // 100] * 1e3


async def crowd(port: int, asked: Sequence[Asked], clients: int, seconds: float) -> Seen:
    """So many clients ask, one request after the other, for so long."""
    seen, begun = Seen(), perf_counter()
    tasks = [_client(port, asked, Random(i), begun + seconds, seen) for i in range(clients)]
    await asyncio.gather(*tasks)
    seen.seconds = perf_counter() - begun
    return seen


async def _client(
    port: int, asked: Sequence[Asked], random: Random, end: float, seen: Seen
) -> None:
    kinds, weights = list(_KINDS), list(_KINDS.values())
    await asyncio.sleep(random.random())
    while perf_counter() < end:
        kind, request = random.choices(kinds, weights)[0], random.choice(asked)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            outcome = await asyncio.wait_for(_one(kind, request, random, reader, writer, seen), 120)
            seen.counts[outcome] += 1
            if outcome == "429":
                await asyncio.sleep(0.2 + random.random())
        except asyncio.TimeoutError:
            seen.wrong.append(f"{kind}: no end within two minutes")
        finally:
            writer.close()


async def _one(
    kind: str,
    asked: Asked,
    random: Random,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    seen: Seen,
) -> str:
    """One request; returns what became of it."""
    body: dict[str, Any] = {"messages": asked.messages, "max_tokens": asked.max_tokens}
    body |= {"temperature": 0, "stream": kind != "whole"}
    if kind == "refused":
        body |= random.choice(_BAD)
    data = json.dumps(body).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", "connection: close"]
    lines += ["content-type: application/json", f"content-length: {len(data)}"]
    begun = perf_counter()
    writer.write("\r\n".join([*lines, "", ""]).encode() + data)
    await writer.drain()
    if kind == "vanish":
        return kind
    status = int((await reader.readline()).split()[1])
    while (await reader.readline()).strip():
        pass
    if status == 429:
        return "429"
    if kind == "refused":
        if status not in (400, 404):
            seen.wrong.append(f"a bad request was answered with {status}")
        return kind
    if status != 200:
        seen.wrong.append(f"{kind}: {status} {await reader.read()!r:.200}")
        return kind
    if kind == "whole":
        answer = json.loads(await reader.read())
        text = answer["choices"][0]["message"]["content"]
        made = answer["usage"]["completion_tokens"]
        if (text, made) != (asked.text, asked.num_tokens):
            seen.wrong.append(f"whole: {text!r} for {asked!r}")
        seen.tokens += made
        return kind
    return await _stream(kind, asked, random, reader, seen, begun)


async def _stream(
    kind: str, asked: Asked, random: Random, reader: asyncio.StreamReader, seen: Seen, begun: float
) -> str:
    text, first, finish = "", 0.0, None
    leave_at = random.randrange(1, 60) if kind == "leave" else None
    while True:
        line = await reader.readline()
        if kind == "slow":
            await asyncio.sleep(0.02)
        if not line:
            seen.wrong.append(f"{kind}: it ended without [DONE] after {text!r}")
            return kind
        if not line.startswith(b"data: "):
            continue
        if line == b"data: [DONE]\n":
            break
        chunk = json.loads(line[6:])
        if "error" in chunk:
            seen.wrong.append(f"{kind}: {chunk}")
            return kind
        choice = chunk["choices"][0]
        finish = choice["finish_reason"]
        if piece := choice["delta"].get("content"):
            first = first or perf_counter()
            text += piece
            if leave_at is not None and len(text) > leave_at:
                if not asked.text.startswith(text):
                    seen.wrong.append(f"leave: {text!r} for {asked!r}")
                return kind
    if text != asked.text or finish not in ("stop", "length"):
        seen.wrong.append(f"{kind}: {text!r} ({finish}) for {asked!r}")
    seen.tokens += asked.num_tokens
    if kind == "stream" and first:
        seen.first.append(first - begun)
        if asked.num_tokens > 1:
            seen.between.append((perf_counter() - first) / (asked.num_tokens - 1))
    return kind
