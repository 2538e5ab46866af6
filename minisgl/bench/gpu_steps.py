"""What an engine does on a GPU: decode steps, whole runs, and the kernels of a step."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from random import Random
from statistics import median, quantiles
from time import perf_counter
from typing import Any, Final, NamedTuple

import torch

from minisgl.bench.work import Work, equal
from minisgl.build import load
from minisgl.core import SamplingParams, StepRecord
from minisgl.engine.engine import Engine

Line = dict[str, Any]
CONTEXT: Final = 480  # a decode step's prompts; 64 steps later it is 544


def engine_for(folder: Path, **toggles: Any) -> Engine:
    """Ours, with room for 256 sequences of 2048."""
    sizes: dict[str, Any] = dict(max_running=256, max_seq_len=2048, record=False, device="cuda")
    sizes["num_pages"] = 256 * 1056 // 16 * 2
    return load(folder, **sizes | toggles)


def warm_up(engine: Engine, most: int = 256) -> None:
    """Compile and capture all that a run may need: every graph, and prompts of several lengths."""
    random = Random(1)
    for i in range(most):
        ids = [random.randrange(5, 10_000) for _ in range(40)]
        engine.add(ids, SamplingParams(max_tokens=3 + 2 * (i // 4), ignore_eos=True))
    engine.run()
    for i in range(8):
        ids = [random.randrange(5, 10_000) for _ in range(900 + i)]
        engine.add(ids, SamplingParams(max_tokens=2, ignore_eos=True))
    engine.run()


class Steps(NamedTuple):
    """Decode steps of one batch: seconds, the median with the first and the last decile."""

    wall: float  # from one collected step to the next
    low: float
    high: float
    device: float  # as the device measured it
    host: float  # plan, commit, launch and apply
    hidden: float  # the share of the host's work that ran while the device computed


def decode(engine: Engine, rows: int, steps: int = 64, seed: int = 0) -> Steps:
    """So many requests decode together, at a context of about 512."""
    work = equal(seed + rows, rows, CONTEXT, steps + 8, 10_000)
    for asked in work.requests:
        engine.add(asked.prompt, SamplingParams(max_tokens=asked.num_tokens, ignore_eos=True))
    records, times = list[StepRecord](), list[float]()
    gc.collect()  # now, rather than in the middle of what is measured
    for record in engine.steps():
        records.append(record)
        times.append(perf_counter())
    full = [
        i
        for i, record in enumerate(records)
        if len(record.batch.rows) == rows and all(row.length == 1 for row in record.batch.rows)
    ][4:-2]
    wall = [times[i] - times[i - 1] for i in full]
    device, host, hidden = list[float](), list[float](), 0.0
    lanes = [span for record in records for span in record.spans if span.lane == "device"]
    for i in full:
        spans = records[i].spans
        device += [span.end - span.start for span in spans if span.lane == "device"]
        mine = [span for span in spans if span.lane == "host" and span.name != "wait"]
        host.append(sum(span.end - span.start for span in mine))
        for span in mine:
            near = (d for d in lanes if d.end > span.start and d.start < span.end)
            hidden += sum(min(span.end, d.end) - max(span.start, d.start) for d in near)
    deciles = quantiles(wall, n=10)
    share = hidden / sum(host)
    return Steps(median(wall), deciles[0], deciles[-1], median(device), median(host), share)


class Offline(NamedTuple):
    """A run to completion, in seconds."""

    wall: float  # from the first request added to the last token
    steps: int
    prompts: float  # in which the device computed steps with prompts
    decodes: float  # ... and steps without
    slowest: float  # the longest time between two collected steps

    @property
    def idle(self) -> float:
        """In which the device computed nothing."""
        return self.wall - self.prompts - self.decodes


def run_offline(engine: Engine, work: Work) -> Offline:
    """All requests at once. Records are not kept: a heap of them is what a collection walks."""
    seconds, slowest, steps = [0.0, 0.0], 0.0, 0
    torch.cuda.synchronize()
    gc.collect()
    last = start = perf_counter()
    for asked in work.requests:
        engine.add(asked.prompt, SamplingParams(max_tokens=asked.num_tokens, ignore_eos=True))
    while record := engine.step():
        only_decodes = all(row.length == 1 for row in record.batch.rows)
        for span in record.spans:
            if span.lane == "device":
                seconds[only_decodes] += span.end - span.start
        now = perf_counter()
        slowest, last, steps = max(slowest, now - last), now, steps + 1
    return Offline(perf_counter() - start, steps, seconds[0], seconds[1], slowest)


def kernels_of(engine: Engine, rows: int, top: int = 12) -> Iterator[Line]:
    """Where a decode step's time goes: the kernels of 8 steps, by their share."""
    from torch.profiler import ProfilerActivity, profile

    work = equal(97 + rows, rows, CONTEXT, 40, 10_000)
    for asked in work.requests:
        engine.add(asked.prompt, SamplingParams(max_tokens=asked.num_tokens, ignore_eos=True))
    engine.run(until=lambda record: all(row.length == 1 for row in record.batch.rows))
    engine.run(max_steps=8)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        engine.run(max_steps=8)
        torch.cuda.synchronize()
    engine.run()
    events = [event for event in seen.key_averages() if event.self_device_time_total > 0]
    total = sum(event.self_device_time_total for event in events)
    yield {"what": f"kernels, batch {rows}", "ms per step": total / 8e3, "kinds": len(events)}
    events.sort(key=lambda event: -event.self_device_time_total)
    for event in events[:top]:
        yield {
            "kernel": event.key[:90],
            "us each": event.self_device_time_total / event.count,
            "a step": event.count / 8,
            "share": event.self_device_time_total / total,
        }
