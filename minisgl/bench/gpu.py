"""One GPU: decode steps against what the memory allows, and the reference's offline benchmark.

Checkpoints of Qwen3's shapes with seeded random weights are made where this runs, and every engine
computes the same requests, one engine after the other. Another engine takes part through the
environment: ``MINISGL_BENCH_ENGINE`` is a command that is run with two more words, the checkpoint's
folder and a JSON file {"requests": [[prompt ids], number of tokens], ...}; it prints as its last
line a JSON object {"name": ..., "tokens": ..., "seconds": ...}, model loading left out.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter
from typing import Any, Final

import torch

from minisgl.bench.ablate import ablate
from minisgl.bench.drive import Run, drive
from minisgl.bench.effects import FEWEST_RUNS
from minisgl.bench.gpu_limits import Gpu, forget, measured, offline_limit, step_limit
from minisgl.bench.gpu_shapes import write
from minisgl.bench.gpu_steps import (
    CONTEXT,
    Line,
    Steps,
    decode,
    engine_for,
    kernels_of,
    run_offline,
    warm_up,
)
from minisgl.bench.work import Asked, Work, equal
from minisgl.bench.workload import Workload
from minisgl.config import EngineConfig
from minisgl.engine.engine import Engine
from minisgl.engine.prompt import Prompt
from minisgl.tiny.evaluate import cache_of

NO_GPU: Final[Line] = {"note": "left out: needs an NVIDIA GPU; torch sees none here"}


def offline(seed: int = 0, count: int = 256) -> Work:
    """The reference's offline benchmark: input and output lengths uniform in 100 to 1024."""
    random = Random(seed)
    prompts = [
        [random.randint(0, 10_000) for _ in range(random.randint(100, 1024))] for _ in range(count)
    ]
    return Work(f"{count} requests", tuple(Asked(p, random.randint(100, 1024)) for p in prompts))


def transformers_steps(
    name: str, folder: Path, sizes: Sequence[int], steps: int = 24
) -> Iterator[Line]:
    """What transformers needs for the same decode steps, in bfloat16, attention by SDPA."""
    from transformers import AutoModelForCausalLM

    made: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model, cache = made.to("cuda").eval(), cache_of(made)
    for rows in sizes:
        work = equal(rows, rows, CONTEXT, steps, 10_000)
        ids = torch.tensor([asked.prompt for asked in work.requests], device="cuda")
        times = []
        with torch.inference_mode():
            said = model(ids, use_cache=True, logits_to_keep=1)
            for _ in range(steps):
                torch.cuda.synchronize()
                start = perf_counter()
                token = said.logits[:, -1].argmax(-1, keepdim=True)
                said = model(token, use_cache=True, **{cache: getattr(said, cache)})
                torch.cuda.synchronize()
                times.append(perf_counter() - start)
        took = median(times[4:]) * 1e3
        yield {"model": name, "side": "transformers", "batch": rows, "ms per step": took}
        del said
    del model, made
    forget()


def external(folder: Path, work: Work) -> Iterator[Line]:
    """The engine that the environment names, on the same requests."""
    command = os.environ.get("MINISGL_BENCH_ENGINE")
    if not command:
        return
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "work.json"
        requests = [[asked.prompt, asked.num_tokens] for asked in work.requests]
        file.write_text(json.dumps({"requests": requests}))
        words = [*shlex.split(command), str(folder), str(file)]
        done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        yield {"note": f"{command} failed: {done.stderr.strip().splitlines()[-1:]}"}
        return
    said = json.loads(done.stdout.strip().splitlines()[-1])
    yield {"side": said["name"], "tokens per second": said["tokens"] / said["seconds"]}


def shape_lines(name: str, folder: Path, gpu: Gpu, quick: bool, **toggles: Any) -> Iterator[Line]:
    """All that is measured of one shape, ours first."""
    sizes = (1, 16, 64, 256)
    with engine_for(folder, **toggles) as engine:
        config = engine.config
        yield {
            "model": name,
            "attention": config.attention,
            "kernels": config.kernels,
            "cuda_graph": config.cuda_graph,
            "megakernel": config.megakernel,
            "pages": config.num_pages,
        }
        start = perf_counter()
        warm_up(engine)
        yield {"what": "warm-up", "seconds": perf_counter() - start}
        for rows in sizes:
            step = decode(engine, rows)
            limit = step_limit(name, rows, rows * (CONTEXT + 40), gpu)
            yield {"model": name, "batch": rows} | _said(step, limit)
        for round_ in range(1 if quick else 3):
            work = offline(round_)
            took, least = run_offline(engine, work), offline_limit(name, work, gpu)
            yield {
                "model": name,
                "what": "offline benchmark",
                "tokens": work.num_tokens,
                "seconds": took.wall,
                "tokens per second": work.num_tokens / took.wall,
                "limit": work.num_tokens / least,
                "of limit": least / took.wall,
                "steps": took.steps,
                "device in prompts": took.prompts,
                "device in decodes": took.decodes,
                "device idle": took.idle,
                "slowest step": took.slowest,
            }
        for rows in (1, 64) if quick else sizes:
            yield from kernels_of(engine, rows)
    forget()


_ARMS: Final[tuple[dict[str, dict[str, Any]], ...]] = (
    {
        "overlap off": {"overlap": False},
        "graphs off": {"cuda_graph": False},
        "megakernel off": {"megakernel": False},
        "recording on": {"record": True},
        "kernels torch": {"kernels": "torch"},
    },
    {
        "fa3,triton": {"attention": "fa3,triton"},
        "flashinfer": {"attention": "flashinfer"},
        "fa3,flashinfer": {"attention": "fa3,flashinfer"},
        "fa3": {"attention": "fa3"},
        "triton": {"attention": "triton"},
    },
)


def toggle_lines(name: str, folder: Path, quick: bool) -> Iterator[Line]:
    """Each arm beside the engine as it is, in turn: ms per step and ratios; then whole runs."""
    for arms in _ARMS:
        base: dict[str, dict[str, Any]] = {"base": {}}
        sides = {arm: (folder, changes) for arm, changes in (base | arms).items()}
        yield from in_turn(name, sides, 2 if quick else 5)
    sizes: dict[str, Any] = dict(max_running=64, max_seq_len=2048, num_pages=64 * 56)
    config = EngineConfig(device="cuda", record=False, **sizes)
    off = {"overlap": [False], "cuda_graph": [False]}
    yield from ablated(name, folder, config, off, 2 if quick else FEWEST_RUNS)


def in_turn(
    name: str,
    arms: dict[str, tuple[Path, dict[str, Any]]],
    rounds: int,
    sizes: Sequence[int] = (1, 64, 256),
) -> Iterator[Line]:
    """Decode steps of several engines, one after the other in each round; "base" is one of them.
    arms: what each loads and how. sizes: the batches."""
    took: dict[str, dict[int, list[Steps]]] = {arm: {n: [] for n in sizes} for arm in arms}
    pages = max(sizes) * 36
    engines = {
        arm: engine_for(folder, **{"num_pages": pages} | changes)
        for arm, (folder, changes) in arms.items()
    }
    for engine in engines.values():
        for rows in sizes:
            decode(engine, rows, 16)
    for round_ in range(rounds):
        for arm, engine in engines.items():
            for rows in sizes:
                took[arm][rows].append(decode(engine, rows, 40, 1000 * round_))
    for arm, by_size in took.items():
        for rows, each in by_size.items():
            ratios = [
                this.wall / other.wall for this, other in zip(each, took["base"][rows], strict=True)
            ]
            yield {
                "model": name,
                "arm": arm,
                "batch": rows,
                "ms per step": median(s.wall for s in each) * 1e3,
                "device ms": median(s.device for s in each) * 1e3,
                "host ms": median(s.host for s in each) * 1e3,
                "hidden": median(s.hidden for s in each),
                "to base": median(ratios),
                "from": min(ratios),
                "to": max(ratios),
            }
    for engine in engines.values():
        engine.close()
    forget()


def ablated(
    name: str,
    folder: Path,
    base: EngineConfig,
    toggles: Mapping[str, Iterable[Any]],
    repeats: int,
    rows: int = 64,
) -> Iterator[Line]:
    """Whole runs under each toggle beside the base's, by ``minisgl.ablate``: ratios with intervals.

    So many requests decode together; engines are warm before they are timed.
    """
    work = equal(rows, rows, CONTEXT, 192, 10_000)
    found = ablate(
        Workload.from_prompts([asked.prompt for asked in work.requests], 192),
        folder,
        base,
        toggles=toggles,
        repeats=repeats,
        progress=False,
        metrics=("throughput", "itl"),
        driver=_drive_warm,
    )
    for effect in found.effects:
        ratio, low, high = effect.interval or (None, None, None)
        yield {
            "model": name,
            "ablated": effect.arm,
            "batch": rows,
            "metric": effect.metric,
            "to base": ratio,
            "from": low,
            "to": high,
            "verdict": effect.verdict,
        }


def _drive_warm(engine: Engine, workload: Workload, prompts: Sequence[Prompt]) -> Run:
    warm_up(engine, len(workload))
    return drive(engine, workload, prompts)


def lines(quick: bool, shapes: Sequence[str] = ("0.6B", "8B", "14B")) -> Iterator[Line]:
    """Everything, one shape after the other. Takes minutes, and disk for the largest checkpoint."""
    if not torch.cuda.is_available():
        yield NO_GPU
        return
    gpu = measured()
    yield about(gpu)
    for name in shapes:
        with tempfile.TemporaryDirectory() as temporary:
            start = perf_counter()
            folder = write(name, Path(temporary) / name)
            yield {"what": f"checkpoint {name} written", "seconds": perf_counter() - start}
            yield from shape_lines(name, folder, gpu, quick)
            if name == "0.6B":
                yield from toggle_lines(name, folder, quick)
            yield from transformers_steps(name, folder, (1, 16, 64))
            yield from external(folder, offline())


def about(gpu: Gpu) -> Line:
    """The GPU that is measured."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy TB/s": gpu.bandwidth / 1e12,
        "bf16 TFLOP/s": gpu.products / 1e12,
    }


def _said(took: Steps, limit: float) -> Line:
    return {
        "ms per step": took.wall * 1e3,
        "decile": took.low * 1e3,
        "to": took.high * 1e3,
        "device ms": took.device * 1e3,
        "host ms": took.host * 1e3,
        "hidden": took.hidden,
        "limit ms": limit * 1e3,
        "of limit": limit / took.wall,
    }
