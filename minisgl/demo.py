"""The first thing to run: ten requests through the embedded model, one batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any, NamedTuple

from minisgl.build import load
from minisgl.config import EngineConfig
from minisgl.core import Request, Reused, SamplingParams, StepRecord
from minisgl.engine.engine import Engine
from minisgl.tiny.generate import long_chat

Chat = list[dict[str, str]]

_SYSTEM = (
    "You are Nora, a helper in a toy shop. The toy shop opens at 9. The toy shop closes at 5. "
    "It is closed on Monday. The door is red. One kite costs 12 coins."
)
_QUESTIONS = (
    "What is your name?",
    "When does the toy shop open?",
    "How much is one kite?",
    "What colour is the door?",
    "What is 17 + 25?",
    "Repeat after me: kite lamp river 42 drum.",
    "On which day is the toy shop closed?",
    "Tell me a story about a fox named Mia.",
)
_LONG_WORDS = 600  # about 1.4 tokens each: more than one step takes
_DRAWN = 32  # steps in the picture
_ARMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("as above", {}),
    ("no prefix cache", {"prefix_cache": "naive"}),
    ("no chunked prefill", {"chunked_prefill": False}),
    ("no overlap", {"overlap": False}),
)


def chats() -> list[Chat]:
    """Eight chats that share a system prompt, and two that begin with a long text."""
    short = [
        [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": question}]
        for question in _QUESTIONS
    ]
    return short + [long_chat(_LONG_WORDS, seed, "library")[0] for seed in (1, 2)]


def run(model: str, config: EngineConfig, picture: str | None = None) -> Iterator[str]:
    """The demonstration, line by line: every step, every answer, then the same work otherwise.

    picture: a file for the figure of who ran when; its ending says the format.
    """
    prompts, sampling = chats(), SamplingParams(max_tokens=96)
    with load(model, config) as engine:
        requests = [engine.add(prompt, sampling) for prompt in prompts]
        yield f"{model}: {engine.config}"
        yield f"{len(requests)} requests, {sum(r.prompt_len for r in requests)} prompt tokens\n"
        yield _HEAD
        for record in engine.steps():
            yield _row(record)
        yield ""
        for request, prompt in zip(requests, prompts, strict=True):
            question = prompt[-1]["content"].rsplit("\n", 1)[-1]
            yield f"r{request.rid}  {question}\n    {request.text}"
        yield f"\n{engine.cache!r}\n"
    if picture is not None:
        trace = engine.trace
        first, last = trace.history.first, min(trace.history.first + _DRAWN, len(trace)) - 1
        trace.plot.lanes(first, last).savefig(picture)
        yield f"drawn: steps {first} to {last} in {picture}\n"
    yield from _compare(model, config, prompts, sampling)


_COLUMNS = "{:>4}  {:<8}{:>5}{:>9}{:>7}  {:<23}{}"
_HEAD = _COLUMNS.format("step", "phase", "rows", "computed", "reused", "pages", "waiting, and why")


def _row(record: StepRecord) -> str:
    rows, gauges = record.batch.rows, record.gauges
    kinds = {"decode" if row.token_ids is None else "prefill" for row in rows}
    phase = "mixed" if len(kinds) == 2 else "".join(kinds) or "-"
    pages = f"{gauges.free_pages} free, {gauges.cached_pages} kept"
    computed, reused = record.batch.num_tokens, _reused([record])
    line = (record.batch.step, phase, len(rows), computed, reused, pages, _waits(record))
    return _COLUMNS.format(*line).rstrip()


def _waits(record: StepRecord) -> str:
    """Who was looked at and does not run, a reason each; one in common is said once."""
    reasons = {refusal.rid: refusal for refusal in reversed(record.plan.refusals)}
    by_reason: dict[str, list[str]] = {}
    for refusal in sorted(reasons.values()):
        who, _, reason = str(refusal).partition(" waits: ")
        by_reason.setdefault(reason, []).append(who)
    return "; ".join(f"{_names(who)}: {reason}" for reason, who in by_reason.items())


def _names(who: Sequence[str]) -> str:
    return " ".join(who) if len(who) < 4 else f"{who[0]}…{who[-1]} ({len(who)})"


def _reused(records: Sequence[StepRecord]) -> int:
    events = (event for record in records for event in record.events)
    return sum(event.num_tokens for event in events if isinstance(event, Reused))


class _Result(NamedTuple):
    steps: int
    computed: int
    reused: int
    seconds: float
    tokens: list[tuple[int, ...]]


def _measure(engine: Engine, prompts: list[Chat], sampling: SamplingParams) -> _Result:
    start = perf_counter()
    requests: list[Request] = [engine.add(prompt, sampling) for prompt in prompts]
    records = engine.run()
    seconds = perf_counter() - start
    computed = sum(record.batch.num_tokens for record in records)
    tokens = [request.output for request in requests]
    return _Result(len(records), computed, _reused(records), seconds, tokens)


def _compare(
    model: str, config: EngineConfig, prompts: list[Chat], sampling: SamplingParams
) -> Iterator[str]:
    yield "The same requests, one toggle at a time (a single run each: times are a hint)"
    yield f"{'':<20}{'steps':>6}{'computed':>10}{'reused':>8}{'seconds':>9}  tokens"
    first: _Result | None = None
    for name, toggles in _ARMS:
        with load(model, config.but(**toggles)) as engine:
            result = _measure(engine, prompts, sampling)
        first = first or result
        same = "the same" if result.tokens == first.tokens else "DIFFERENT"
        yield (
            f"{name:<20}{result.steps:>6}{result.computed:>10}{result.reused:>8}"
            f"{result.seconds:>9.2f}  {same}"
        )
