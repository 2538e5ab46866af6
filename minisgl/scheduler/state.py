"""A scheduler's whole state as plain data, between two steps: where a recording begins anew.

Going on from what was read is going on from what was written: the same inputs make the same
batches, pages and evictions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Final

from minisgl.config import EngineConfig
from minisgl.core import Logprob, Request, SamplingParams, as_int
from minisgl.scheduler.replay import fresh
from minisgl.scheduler.scheduler import Scheduler

# Of a request: the rest follows from these, or is empty while nothing of it is in flight.
_NUMBERS: Final = (
    "rid",
    "prompt_len",
    "arrival",
    "cached",
    "promised",
    "prefill_end",
    "scheduled",
    "shared",
    "preemptions",
)


def written(scheduler: Scheduler) -> dict[str, Any]:
    """The state as JSON can hold it. Raises ValueError while a step is in flight."""
    if scheduler.in_flight:
        raise ValueError("a step is in flight; collect it first")
    return {
        "step": scheduler.step,
        "next_after_decode": scheduler.next_after_decode,
        "expected": scheduler._expected,
        "free_slots": scheduler._free_slots,
        "waiting": [_request(request) for request in scheduler.waiting.values()],
        "running": [_request(request) for request in scheduler.running.values()],
        "pages": scheduler.pool.saved(),
    }


def read(state: dict[str, Any], config: EngineConfig, eos: Iterable[int]) -> Scheduler:
    """The scheduler that was written. config: resolved, that of the engine it belonged to.

    Raises ValueError for a state that does not add up, and what else a wrong one leads to.
    """
    scheduler = fresh(config, eos)
    scheduler.step = as_int("step", state["step"], 0)
    scheduler.next_after_decode = as_int("next_after_decode", state["next_after_decode"], 0)
    scheduler._expected = as_int("expected", state["expected"], 0)
    scheduler._free_slots = [as_int("a slot", slot, 0) for slot in state["free_slots"]]
    for line in state["waiting"]:
        request = _read(line, scheduler)
        scheduler.waiting[request.rid] = request
    for line in state["running"]:
        request = _read(line, scheduler)
        scheduler.running[request.rid] = request
        scheduler._promised += request.promised
    rows = [request.pages for request in scheduler.running.values()]
    try:
        scheduler.pool.restore(state["pages"], rows)
        scheduler.check()
    except (AssertionError, IndexError) as error:
        raise ValueError(f"the state does not add up: {error}") from error
    return scheduler


def sampling_out(sampling: SamplingParams) -> dict[str, Any]:
    """Sampling parameters as JSON can hold them."""
    return {field.name: getattr(sampling, field.name) for field in fields(sampling)}


def _request(request: Request) -> dict[str, Any]:
    return {
        **{name: getattr(request, name) for name in _NUMBERS},
        "tokens": request.tokens,
        "sampling": sampling_out(request.sampling),
        "clipped_from": request.clipped_from,
        "slot": request.slot,
        "pages": request.pages,
        "scores": request.scores,
        "prompt_scores": request.prompt_scores,
    }


def _read(line: dict[str, Any], scheduler: Scheduler) -> Request:
    numbers = {name: as_int(name, line[name], 0) for name in _NUMBERS}
    tokens = [as_int("a token id", token, 0) for token in line["tokens"]]
    sampling = SamplingParams(**line["sampling"])
    request = Request(numbers["rid"], tokens, numbers["prompt_len"], sampling)
    for name, value in numbers.items():
        setattr(request, name, value)
    for name in ("clipped_from", "slot"):
        value = line[name]
        setattr(request, name, None if value is None else as_int(name, value, 0))
    request.pages = [as_int("a page", page, 0) for page in line["pages"]]
    request.scores = [_logprob(*score) for score in line["scores"]]
    request.prompt_scores = [_logprob(*score) for score in line["prompt_scores"]]
    scheduler.settle(request)
    return request


def _logprob(logprob: float, rank: int, top: Iterable[tuple[int, float]]) -> Logprob:
    return Logprob(logprob, rank, tuple((token, value) for token, value in top))
