"""`minisgl bench`: which measurements there are, and how they are printed."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

from minisgl.bench import files, gpu, gpu_awq, host, screen, table, work
from minisgl.bench.limits import Machine, limit, machine
from minisgl.bench.measure import Result, in_turn, ratios
from minisgl.bench.recording import recording
from minisgl.bench.serving import serving
from minisgl.bench.sides import Continuous, Generate, Ours, Side, Vllm
from minisgl.build import load
from minisgl.core import SamplingParams

Line = dict[str, Any]
_LARGE_BYTES: Final = 10 << 30  # disk and memory that (d) takes


def run(
    parts: tuple[str, ...],
    quick: bool = False,
    to: Path | None = None,
    others: Sequence[str] = (),
    figures: Path | None = None,
) -> Generator[str, None, None]:
    """Measure these of ``PARTS`` and say what came out, line by line. to: also as JSON, there.

    parts: none means all. others: servers that serving is measured beside, instead of its peers.
    figures: where the table that notebooks show of a GPU goes. Raises ValueError for a part that
    there is not, for servers without serving, for a table without a GPU, for a folder that is not
    there.
    """
    if wrong := sorted(set(parts) - set(PARTS)):
        raise ValueError(f"no such part: {', '.join(wrong)}; there are {', '.join(PARTS)}")
    if others and "serving" not in (parts := parts or ("serving",)):
        raise ValueError("--server is for the part serving")
    if figures is not None and not {*table.PARTS} & {*(parts := parts or ("gpu",))}:
        raise ValueError("--table is for the parts gpu and awq")
    for path in (to, figures):
        if path is not None:
            files.check_writable(path)
    lines: list[Line] = []
    about = machine_line()
    yield about
    for part in parts or PARTS:
        yield f"\n{part}"
        measure = partial(serving, others=others) if part == "serving" else PARTS[part]
        for line in measure(quick):
            lines.append({"part": part} | line)
            if to is not None:  # after every line: a run of minutes may be killed
                files.write_whole(to, json.dumps({"about": about, "lines": lines}, indent=1))
            if figures is not None and part in table.PARTS:
                table.write(figures, lines, date.today())
            yield _text(line)
    for written in (to, figures):
        if written is not None:
            yield f"\nwritten: {written}"


def machine_line() -> str:
    """The machine, the versions and the date."""
    name = platform.processor() or platform.machine()
    try:
        info = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in info if line.startswith("model name"))
        wide = any(" avx512f" in line for line in info)
        name += ", AVX-512" if wide else ""
    except (OSError, StopIteration):
        pass
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"{name}; one thread; Python {platform.python_version()}, {packages}; {date.today()}"


def cpu(quick: bool) -> Iterator[Line]:
    """(a), (b), (c) against the peers, on the small shape."""
    rounds, best = (2, machine(64)) if quick else (5, machine())
    vocab = work.SMALL["vocab_size"]
    with tempfile.TemporaryDirectory() as folder:
        where = work.write(work.SMALL, Path(folder) / "small")
        engines: list[Side] = [
            Ours(where),
            Ours(where, "minisgl, fp16 weights", quantization="fp16"),
        ]
        theirs: list[Side] = []
        if Vllm.missing() is None:
            theirs.append(Vllm(where))
        else:
            yield {"note": Vllm.missing()}
        count = 16 if quick else 64
        peers: list[Side] = [Generate(where, count // 4), Generate(where, count)]
        peers += [] if quick else [Generate(where, count // 4, "prompt"), Continuous(where)]
        a = partial(work.mixed, count=count, vocab_size=vocab)
        yield from _compared("a", [*engines, *theirs, *peers], a, rounds, work.SMALL, best)
        b = partial(work.sharing, vocab_size=vocab)
        yield from _compared(
            "b", [*engines, *theirs, Generate(where, 16)], b, rounds, work.SMALL, best
        )
        c = partial(
            work.equal, count=1, prompt=64, num_tokens=64 if quick else 128, vocab_size=vocab
        )
        yield from _compared(
            "c", [*engines, *theirs, Generate(where, 1)], c, rounds, work.SMALL, best
        )
        for side in (*engines, *theirs, *peers):
            side.close()


def large(quick: bool) -> Iterator[Line]:
    """(d): the shape of Qwen3-0.6B. Takes 10 GiB of memory and minutes."""
    free = load_free()
    if free < _LARGE_BYTES or shutil.disk_usage(tempfile.gettempdir()).free < _LARGE_BYTES:
        yield {"note": f"left out: it takes {_LARGE_BYTES >> 30} GiB of memory and of disk"}
        return
    rounds, best = (1 if quick else 3), machine()
    vocab = work.LARGE["vocab_size"]
    with tempfile.TemporaryDirectory() as folder:
        where = work.write(work.LARGE, Path(folder) / "large")
        small: dict[str, Any] = dict(num_pages=128)
        sides: list[Side] = [
            Ours(where, **small),
            Ours(where, "minisgl, fp16 weights", quantization="fp16", **small),
            Generate(where, 16),
        ]
        for count in (1, 4, 16):
            d = partial(work.equal, count=count, prompt=16, num_tokens=16, vocab_size=vocab)
            yield from _compared("d", sides, d, rounds, work.LARGE, best)
        for side in sides:
            side.close()


def load_free() -> int:
    """Bytes of memory that are free."""
    from minisgl.build import hardware

    return hardware().memory


def host_cost(quick: bool) -> Iterator[Line]:
    """What the host does per step, and that it grows with the batch alone."""
    steps = 50 if quick else 300
    costs: list[Callable[[], host.Cost]] = [
        partial(host.decoding, n, steps=steps) for n in (8, 64, 256)
    ]
    costs += [partial(host.decoding, 64, n, steps=steps) for n in (100, 1000, 10_000)]
    nodes = (1000, 10_000) if quick else (1000, 10_000, 100_000)
    costs += [partial(host.evicting, n, steps=steps) for n in nodes]
    for cost in costs:
        yield cost()._asdict()


def toggles(quick: bool) -> Iterator[Line]:
    """Recording and overlap on against off, a fork, and a rewind of 100 steps; embedded model."""
    rounds, vocab = (2 if quick else 9), 1000
    for name, batch in (("record", 8), ("overlap", 8), ("overlap", 64)):
        sides: list[Side] = []
        for on in (True, False):
            given: dict[str, Any] = {"record": False} | {name: on}
            sides.append(Ours(Path("tiny"), f"{name}={on}", **given))
        some = partial(work.equal, count=batch, prompt=32, num_tokens=64, vocab_size=vocab)
        results = in_turn(sides, some, rounds)
        for side in sides:
            side.close()
        wall = [
            median(a / b for a, b in zip(results[0].per_second, result.per_second, strict=True))
            for result in results
        ]
        for result, ratio in zip(results, wall, strict=True):
            yield {
                "work": result.work,
                "side": result.side,
                "per second": median(result.per_second),
                "on / this": ratio,
            }
    for batch in (1, 8, 64):
        cost = recording(batch, 100 if quick else 1000)
        yield {
            "what": f"recording, {batch} requests decoding",
            "ms": cost.recording,
            "of a step": cost.recording / cost.step,
        }
    yield from _travels(quick)


def _travels(quick: bool) -> Iterator[Line]:
    forks, rewinds = list[float](), list[float]()
    with load("tiny", threads=1, num_pages=512) as engine:
        ask = SamplingParams(max_tokens=1000, ignore_eos=True)
        for request in work.equal(0, 8, 32, 1, 1000).requests:
            engine.add(request.prompt, ask)
        engine.run(max_steps=150)
        for _ in range(3 if quick else 9):
            start = perf_counter()
            engine.fork().close()
            forks.append(perf_counter() - start)
            now = len(engine.trace)
            start = perf_counter()
            engine.rewind(to=now - 100)
            rewinds.append(perf_counter() - start)
            engine.run(max_steps=100)
    yield {"what": "a fork, 8 requests decoding", "ms": median(forks) * 1e3}
    yield {"what": "a rewind of 100 steps, 8 requests decoding", "ms": median(rewinds) * 1e3}


def inspector(quick: bool) -> Iterator[Line]:
    """First paint and cursor moves of the inspector on large runs, in a browser."""
    if (why := screen.missing()) is not None:
        yield {"note": why}
        return
    for what, made in screen.scenes(quick):
        seen = screen.look(what, made(), 10 if quick else 40)
        yield {
            "what": seen.what,
            "first paint ms": seen.first_paint,
            "of": screen.PAINT,
            "move ms": seen.move,
            "slowest": seen.slowest_move,
            "computed": seen.computed,
            "most computed": seen.most_computed,
            "to the next step": seen.play,
            "at most": screen.MOVE,
            "heap MB": seen.heap / 1e6,
            "page MB": seen.page / 1e6,
        }


PARTS: Final[dict[str, Callable[[bool], Iterator[Line]]]] = {
    "cpu": cpu,
    "large": large,
    "host": host_cost,
    "toggles": toggles,
    "inspector": inspector,
    "gpu": gpu.lines,
    "awq": gpu_awq.lines,
    "serving": serving,
}


def _compared(
    case: str,
    sides: list[Side],
    todo: Callable[[int], work.Work],
    rounds: int,
    shape: dict[str, Any],
    best: Machine,
) -> Iterator[Line]:
    results: list[Result] = in_turn(sides, todo, rounds)
    for side, result, ratio in zip(sides, results, ratios(results), strict=True):
        size = 2 if "fp16" in side.name else 4
        most = median(limit(todo(i), shape, best, size) for i in range(rounds))
        yield {
            "case": case,
            "work": result.work,
            "side": result.side,
            "per CPU second": result.rate,
            "minisgl / this": ratio,
            "limit": most,
            "equal": result.equal,
        }


def _text(line: Line) -> str:
    return "  ".join(
        (
            f"{name} {value:.3g}"
            if isinstance(value, float) and value < 100
            else (
                f"{name} {value:.0f}"
                if isinstance(value, float)
                else f"{value}" if isinstance(value, str) else f"{name} {value}"
            )
        )
        for name, value in line.items()
    )
