"""A run as a file: JSON lines, a versioned header and then every input, which rebuild the records.

Nothing in a file is executed or unpickled. Its inputs pass the same doors as a user's, so a file
that contradicts itself is refused at the line where it does.
"""

from __future__ import annotations

import json
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, fields
from os import PathLike
from pathlib import Path
from typing import Any, Final, NamedTuple

from minisgl.config import EngineConfig
from minisgl.core import (
    Abort,
    Add,
    Batch,
    Change,
    Event,
    Input,
    Logprob,
    Outcome,
    Plan,
    Refusal,
    SamplingParams,
    Span,
    StepRecord,
    StopHit,
    Why,
)
from minisgl.scheduler.replay import fresh
from minisgl.scheduler.scheduler import Scheduler
from minisgl.trace.history import History

FORMAT: Final = "minisgl-trace"
VERSION: Final = 1
# A file may not ask for more host memory than this; the largest pools are far smaller.
_MOST: Final = {"num_pages": 10_000_000, "max_running": 100_000}


class Header(NamedTuple):
    """What a run was made with."""

    config: EngineConfig  # resolved
    eos: frozenset[int]
    vocab_size: int
    model: str  # as it was asked for: "tiny", a folder, a Hugging Face id
    origin: EngineConfig  # what the history began with: a fork has another config since


def save(path: str | PathLike[str], header: Header, history: History) -> None:
    """Write a history that was kept from its beginning."""
    with Path(path).open("w", encoding="utf-8") as out:
        for line in _lines(header, history):
            out.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")


def load(path: str | PathLike[str]) -> tuple[Header, History]:
    """Read a file and rebuild its records.

    Raises ValueError naming the line that is wrong. A last line that was cut off is left out, with
    a warning.
    """
    lines = _read(Path(path))
    _, first = next(lines, (1, None))
    header, history = _header(path, first), History()
    rebuild = _Rebuild(fresh(header.origin, header.eos), history)
    for number, line in lines:
        try:
            rebuild.take(line)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, MemoryError) as error:
            raise ValueError(f"{path}, line {number}: {error!r}") from error
    return header, history


def _lines(header: Header, history: History) -> Iterator[dict[str, Any]]:
    yield {
        "format": FORMAT,
        "version": VERSION,
        "config": _config_out(header.config),
        "origin": _config_out(header.origin),
        "eos": sorted(header.eos),
        "vocab_size": header.vocab_size,
        "model": header.model,
    }
    for item in history.inputs(0, history.num_inputs):
        match item:
            case Add(rid, prompt, sampling):
                chosen = {f.name: getattr(sampling, f.name) for f in fields(sampling)}
                yield {"add": rid, "prompt": prompt, "sampling": chosen}
            case Abort(rid):
                yield {"abort": rid}
            case Change():
                yield {"change": item._asdict()}
            case Plan(rows, preempt, refusals):
                refused = [(r.rid, r.why.name, r.asked, r.left, r.by) for r in refusals]
                yield {"plan": rows, "preempt": preempt, "refusals": refused}
            case Outcome(step):
                known = step < len(history)
                spans = history.record(step).spans if known else item.spans
                yield {"outcome": item._replace(spans=())._asdict(), "spans": spans}


def _config_out(config: EngineConfig) -> dict[str, Any]:
    out = asdict(config)
    if callable(config.policy):  # its plans are recorded; the function cannot be
        out["policy"] = "prefill_first"
    return out


def _config_in(line: dict[str, Any]) -> EngineConfig:
    config = EngineConfig().but(**line)
    sizes = config.limits._asdict()
    for name, most in _MOST.items():
        if sizes[name] > most:
            raise ValueError(f"{name} is {sizes[name]}, at most {most} can be read")
    return config


def _read(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, parsed line); a last line without an end is left out with a warning."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                yield number, json.loads(raw)
            except ValueError as error:
                if raw.endswith(b"\n") or number == 1:
                    raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
                warnings.warn(
                    f"{path}: line {number} was cut off and is left out", RuntimeWarning, 4
                )


def _header(path: str | PathLike[str], line: Any) -> Header:
    if not isinstance(line, dict) or line.get("format") != FORMAT:
        raise ValueError(f"{path} is not a minisgl trace: its first line is no header of one")
    if line.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {line.get('version')!r}; this minisgl reads version {VERSION}"
        )
    try:
        config = _config_in(line["config"])
        origin = _config_in(line["origin"]) if "origin" in line else config
        eos, model = frozenset(map(int, line["eos"])), str(line["model"])
        return Header(config, eos, int(line["vocab_size"]), model, origin)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the header is wrong: {error}") from error


class _Rebuild:
    """Passes a file's inputs through a scheduler's doors and collects the records they make."""

    def __init__(self, scheduler: Scheduler, history: History) -> None:
        self._scheduler, self._history = scheduler, history
        self._pending: list[Event] = []
        self._in_flight: deque[tuple[Plan, Batch, tuple[Event, ...]]] = deque()

    def take(self, line: dict[str, Any]) -> None:
        """One line of the file. Raises whatever a wrong one leads to."""
        match line:
            case {"add": rid, "prompt": prompt, "sampling": sampling}:
                add = Add(int(rid), tuple(map(int, prompt)), SamplingParams(**sampling))
                self._pending += self._scheduler.add(add)[1]
                self._note(add)
            case {"abort": rid}:
                self._pending += self._scheduler.abort(Abort(int(rid)))
                self._note(Abort(int(rid)))
            case {"change": change}:
                self._scheduler.change(Change(**change))
                self._note(Change(**change))
            case {"plan": rows, "preempt": preempt, "refusals": refusals}:
                why = [Refusal(rid, Why[name], *rest) for rid, name, *rest in refusals]
                pairs = tuple((int(rid), int(length)) for rid, length in rows)
                plan = Plan(pairs, tuple(preempt), tuple(why))
                batch, events = self._scheduler.commit(plan)
                self._in_flight.append((plan, batch, events))
                self._note(plan)
            case {"outcome": outcome, "spans": spans}:
                self._outcome(_outcome(outcome), tuple(Span(*span) for span in spans))
            case _:
                raise ValueError(f"it is none of add, abort, change, plan, outcome: {line!r:.80}")

    def _outcome(self, outcome: Outcome, spans: tuple[Span, ...]) -> None:
        plan, batch, committed = self._in_flight.popleft()
        applied = self._scheduler.apply(outcome)
        self._note(outcome)
        events = (*self._pending, *committed, *applied)
        self._pending.clear()
        gauges = self._scheduler.gauges
        device = tuple(span for span in spans if span.lane != "host")
        outcome = outcome._replace(spans=device)
        self._history.add_record(StepRecord(plan, batch, outcome, events, gauges, spans))

    def _note(self, item: Input) -> None:
        self._history.add_input(item)


def _outcome(fields: dict[str, Any]) -> Outcome:
    tokens = tuple(None if token is None else int(token) for token in fields["tokens"])
    return Outcome(
        step=fields["step"],
        tokens=tokens,
        error=fields["error"],
        logprobs=tuple(None if score is None else _logprob(score) for score in fields["logprobs"]),
        prompt_logprobs=tuple(tuple(map(_logprob, row)) for row in fields["prompt_logprobs"]),
        stops=tuple(StopHit(*stop) for stop in fields["stops"]),
    )


def _logprob(fields: list[Any]) -> Logprob:
    logprob, rank, top = fields
    return Logprob(float(logprob), int(rank), tuple((int(token), float(p)) for token, p in top))
