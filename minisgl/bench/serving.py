"""What serving costs: the server over sockets against the same engine without it, and its peers.

Clients and server share the machine: a second core carries the API, both tokenizers and the
clients, while one thread computes. Sides run in turn: read the ratios. The processor's seconds do
not depend on who else is busy.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter, process_time, sleep
from types import TracebackType
from typing import Any, Final, NamedTuple

from minisgl.build import load
from minisgl.core import SamplingParams
from minisgl.llm import LLM, stream
from minisgl.models.hub import locate
from minisgl.tiny.words import ANIMALS, NAMES

_TOKENS: Final = 64  # of each answer: the stories are longer
_PATIENCE: Final = 180.0  # seconds for a server to start
_TEXT: Final = re.compile(rb'"content": ?"[^"]')  # in a chunk, the first of which may have none

Line = dict[str, Any]
Chat = list[dict[str, str]]


class Took(NamedTuple):
    """One run of all requests. Seconds; first: until each request's first text; cpu: of the
    processor, by whoever generates."""

    whole: float
    first: tuple[float, ...]
    tokens: int
    cpu: float

    @property
    def speed(self) -> float:
        """Generated tokens per second."""
        return self.tokens / self.whole


class Server:
    """A command that serves OpenAI's API in processes of its own, at ``port``. Use with ``with``.

    name: the model's, as its clients say it; None: as the server does.
    Raises RuntimeError if nothing answers there in time.
    """

    def __init__(self, command: Sequence[str], port: int, name: str | None = None) -> None:
        self.port = port
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        )
        models = self._models()
        self.name = str(models[0]["id"]) if name is None else name

    def _models(self) -> list[dict[str, Any]]:
        """What is served, once it is."""
        end = monotonic() + _PATIENCE
        while monotonic() < end and self._process.poll() is None:
            try:
                url = f"http://127.0.0.1:{self.port}/v1/models"
                with urllib.request.urlopen(url, timeout=5) as answer:
                    models: list[dict[str, Any]] = json.load(answer)["data"]
                    return models
            except OSError:  # not there yet, or a 503
                sleep(0.1)
        self._process.kill()
        raise RuntimeError(f"the server did not start: {self._process.args!r}")

    def cpu(self) -> float:
        """The processor's seconds of all its processes so far; 0.0 where nobody tells."""
        return sum(map(_cpu, _family(self._process.pid)))

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()


def ours() -> Server:
    """``minisgl serve`` with one thread."""
    return other(f"{sys.executable} -m minisgl serve --port {{port}} --threads 1")


def theirs(batching: bool) -> Server:
    """``transformers serve`` with one thread. batching: with its continuous batching."""
    flag = "--continuous-batching" if batching else "--no-continuous-batching"
    command = str(Path(sys.executable).parent / "transformers")
    words = f"{command} serve --port {{port}} --device cpu --dtype float32 {flag} {{model}}"
    return other(words, str(locate("tiny")))


def other(command: str, name: str | None = None) -> Server:
    """Any server. command: its words, with {port} where it is to listen and {model} for the folder
    of the embedded model. Raises ValueError for one without a {port}.
    """
    if "{port}" not in command:
        raise ValueError(f"a server's command says {{port}} where it listens; got {command!r}")
    port, folder = _free_port(), str(locate("tiny"))
    words = [word.replace("{port}", str(port)) for word in shlex.split(command)]
    return Server([word.replace("{model}", folder) for word in words], port, name)


def chats(count: int) -> list[Chat]:
    """Chats of which no two are the same. The embedded model tells long stories to all of them."""
    texts = [
        form.format(name, animal)
        for form in ("Tell me a story about {0} the {1}.", "Tell me a story about a {1} named {0}.")
        for animal in ANIMALS
        for name in NAMES
    ]
    if count > len(texts):
        raise ValueError(f"{count} chats were asked, there are {len(texts)}")
    return [[{"role": "user", "content": text}] for text in texts[:count]]


def served(server: Server, asked: Sequence[Chat], streamed: bool) -> Took:
    """Ask a server for all of them at once."""
    before = server.cpu()
    begun = perf_counter()
    first = asyncio.run(_all(server, asked, streamed))
    whole = perf_counter() - begun
    return Took(whole, first, len(asked) * _TOKENS, server.cpu() - before)


def offline(llm: LLM, asked: Sequence[Chat]) -> Took:
    """The same without a server."""
    begun, cpu = perf_counter(), process_time()
    outputs = llm.chat(asked, SamplingParams(max_tokens=_TOKENS), progress=False)
    tokens = sum(len(output.token_ids) for output in outputs)
    return Took(perf_counter() - begun, (), tokens, process_time() - cpu)


def serving(quick: bool, others: Sequence[str] = ()) -> Iterator[Line]:
    """Throughput of 256 requests at once, served and not, and what the processes add to one
    request's first text; then beside ``transformers serve``, where that is installed.

    others: commands of further servers to be beside; see ``other``. With some, nothing else is
    measured. Each round begins with prompts that no cache knows.
    """
    for command in others:
        yield from _beside(
            Path(shlex.split(command)[0]).name, partial(other, command), *_sizes(quick)
        )
    if others:
        return
    count, rounds = (64, 2) if quick else (256, 3)
    parts = _parts(count, rounds * 3)
    ways: dict[str, list[Took]] = {"generate": [], "server": [], "server, streamed": []}
    with LLM("tiny", threads=1, record=False) as llm, ours() as server:
        offline(llm, chats(8))
        served(server, chats(8), True)
        for _ in range(rounds):
            ways["generate"].append(offline(llm, next(parts)))
            ways["server"].append(served(server, next(parts), False))
            ways["server, streamed"].append(served(server, next(parts), True))
        added = _added(server, 20 if quick else 100)
    yield from _lines(ways, count, "generate")
    yield added
    missing = [name for name in ("accelerate", "fastapi") if not importlib.util.find_spec(name)]
    if missing:
        yield {"note": f"transformers serve needs {', '.join(missing)}"}
        return
    for batching in (False, True):
        name = f"transformers serve{', continuous batching' if batching else ''}"
        yield from _beside(name, partial(theirs, batching), *_sizes(quick))


# ---- inside --------------------------------------------------------------------------------------


def _sizes(quick: bool) -> tuple[int, int]:
    """Requests at once beside a peer, and rounds."""
    return (8, 1) if quick else (64, 3)


def _beside(name: str, peer: Callable[[], Server], count: int, rounds: int) -> Iterator[Line]:
    """The same requests to both servers, in turn."""
    beside: dict[str, list[Took]] = {"minisgl serve": [], name: []}
    parts = _parts(count, rounds)
    with ours() as mine, peer() as its:
        for server in (mine, its):
            served(server, chats(4), True)
        for _ in range(rounds):
            part = next(parts)
            beside["minisgl serve"].append(served(mine, part, True))
            beside[name].append(served(its, part, True))
    yield from _lines(beside, count, "minisgl serve")


def _parts(count: int, parts: int) -> Iterator[list[Chat]]:
    every = chats(count * parts + 8)[8:]
    return (every[i * count : (i + 1) * count] for i in range(parts))


def _lines(ways: dict[str, list[Took]], count: int, base: str) -> Iterator[Line]:
    for name, took in ways.items():
        ratios = [t.speed / b.speed for t, b in zip(took, ways[base], strict=True)]
        line = {
            "side": name,
            "requests": count,
            "tokens_per_s": round(median(t.speed for t in took)),
            f"of {base}": round(median(ratios), 3),
            "from": round(min(ratios), 3),
            "to": round(max(ratios), 3),
            "cpu_s": round(median(t.cpu for t in took), 2),
        }
        firsts = sorted(first for t in took for first in t.first if first)
        if firsts:
            line["ttft_p50_ms"] = round(median(firsts) * 1e3)
            line["ttft_p99_ms"] = round(firsts[len(firsts) * 99 // 100] * 1e3)
        yield line


def _added(server: Server, count: int) -> Line:
    """Milliseconds from question to first text, one request at a time, served and not."""
    asked, ask = chats(2 * count), SamplingParams(max_tokens=_TOKENS)
    alone, through = [], []
    with load("tiny", threads=1, record=False) as engine:
        for n in range(count):
            begun = perf_counter()
            pieces = stream(engine, engine.add(asked[2 * n], ask))
            next(pieces)
            alone.append(perf_counter() - begun)
            del pieces  # which aborts its request
            engine.run()
            through.append(served(server, [asked[2 * n + 1]], True).first[0])
    return {
        "side": "first text, one request at a time",
        "alone_ms": round(median(alone) * 1e3, 2),
        "server_ms": round(median(through) * 1e3, 2),
        "added_ms": round((median(through) - median(alone)) * 1e3, 2),
    }


async def _all(server: Server, asked: Sequence[Chat], streamed: bool) -> tuple[float, ...]:
    return tuple(await asyncio.gather(*(_ask(server, chat, streamed) for chat in asked)))


async def _ask(server: Server, chat: Chat, streamed: bool) -> float:
    """Seconds until the first text; 0.0 for an answer that does not stream."""
    body: dict[str, Any] = {"model": server.name, "messages": chat, "temperature": 0}
    data = json.dumps({**body, "max_tokens": _TOKENS, "stream": streamed}).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", "connection: close"]
    lines += ["content-type: application/json", f"content-length: {len(data)}", "", ""]
    begun, first, told = perf_counter(), 0.0, b""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write("\r\n".join(lines).encode() + data)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"{status!r}: {await reader.read()!r}")
    while line := await reader.readline():
        told = line if b"{" in line else told
        if streamed and not first and _TEXT.search(line):
            first = perf_counter() - begun
    writer.close()
    if not streamed and json.loads(told)["usage"]["completion_tokens"] != _TOKENS:
        raise RuntimeError(f"another number of tokens came: {told!r:.300}")
    return first


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _family(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _family(int(child))


def _cpu(pid: int) -> float:
    """Processor seconds of a process so far."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
