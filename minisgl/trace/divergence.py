"""Where two runs part: the first input, decision or outcome that is not the same, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, NamedTuple

from minisgl.core import Abort, Add, Finished, Plan, Reused, Row, StepRecord
from minisgl.scheduler.replay import replay
from minisgl.trace.explain import part
from minisgl.trace.lives import Life, lives
from minisgl.trace.sentence import names
from minisgl.trace.trace import Trace

_SHOWN = 3  # differences that are told of one step

_Input = tuple[str, int, tuple[int, ...]]  # what came, of whom, its prompt


class Divergence(NamedTuple):
    """The first thing that two runs, called a and b, do not have in common.

    kind: "input" (a request or an abort before the step), "decision" (who runs, with which
    positions, and who is preempted), "outcome" (tokens, and who ends), "end" (one has no such
    step). what: the difference; why: what the two plans and states say about it, or "".
    """

    step: int
    kind: Literal["input", "decision", "outcome", "end"]
    what: str
    why: str = ""

    def __str__(self) -> str:
        return f"step {self.step}: {self.what}" + (f"; {self.why}" if self.why else "")


def divergence(a: Trace, b: Trace) -> Divergence | None:
    """Compare two runs step by step, from the first step that both keep.

    Rows are compared as a set, with the positions they compute, and requests by their prompts; what
    differs in their sampling shows in what it leads to. Raises ValueError if they have no step in
    common.
    """
    start, end = max(a.history.first, b.history.first), min(len(a), len(b))
    if start > end:
        kept = [f"{t.history.first} to {len(t) - 1}" for t in (a, b)]
        raise ValueError(f"the runs have no step in common: a keeps {kept[0]}, b keeps {kept[1]}")
    sides = _Side("a", a), _Side("b", b)
    for step in range(start, end):
        found = _inputs(step, *sides) or _decisions(step, *sides) or _outcomes(step, *sides)
        if found:
            return found
    return _inputs(end, *sides) or _end(end, *sides)


def settings(a: Trace, b: Trace) -> dict[str, tuple[Any, Any]]:
    """What differs in the model and the configuration: name -> (a's, b's).

    Whether a run keeps its records in memory, which a server does not, is no difference.
    """
    pairs = {"model": (a.model, b.model)}
    for option in fields(a.config):
        pairs[option.name] = getattr(a.config, option.name), getattr(b.config, option.name)
    del pairs["record"]
    return {name: (_value(x), _value(y)) for name, (x, y) in pairs.items() if x != y}


def _value(value: Any) -> Any:
    return getattr(value, "__name__", type(value).__name__) if callable(value) else value


class _Side:
    """One of two runs, with what passed its doors before each step."""

    def __init__(self, name: str, trace: Trace) -> None:
        self.name, self.trace = name, trace
        history = trace.history
        step = trace.start().step
        # of the step that was next when the history begins, some may be forgotten
        self.first_known = step + 1 if history.first_input else 0
        self.came: dict[int, list[Add | Abort]] = {}
        self._lives: Mapping[int, Life] | None = None
        for item in history.inputs(history.first_input, history.num_inputs):
            match item:
                case Add() | Abort():
                    self.came.setdefault(step, []).append(item)
                case Plan():
                    step += 1

    @property
    def lives(self) -> Mapping[int, Life]:
        """Of the requests that arrive in what is kept."""
        if self._lives is None:
            self._lives = lives(self.trace.history.records)
        return self._lives

    def state(self, step: int) -> dict[str, int]:
        """The numbers that a step was planned with, by replaying all before it; {} if unknown."""
        history, state = self.trace.history, self.trace.start()
        if state.step > step:
            return {}
        for item in history.inputs(history.first_input, history.num_inputs):
            if isinstance(item, Plan) and state.step == step:
                break
            replay([item], state)
        numbers = {"pages left": state.pages_left, "pages cached": state.pool.num_cached}
        return numbers | {"waiting": len(state.waiting), "running": len(state.running)}

    def why_not(self, record: StepRecord, rid: int) -> str:
        """Why a request does not run in a step."""
        named = [refusal.reason for refusal in record.plan.refusals if refusal.rid == rid]
        life, step = self.lives.get(rid), record.batch.step
        if named:
            return "; ".join(named)
        if life is None:
            return "it is not there" if not self.trace.history.first else "nothing names it"
        if life.over is not None and life.over < step:
            return f"it was over in step {life.over} ({life.finish})"
        if step < life.arrival:
            return "it had not come"
        doing = part(record, rid, life.arrival)
        return doing.words or doing.doing


# ---- inputs --------------------------------------------------------------------------------------


def _inputs(step: int, a: _Side, b: _Side) -> Divergence | None:
    if step < max(a.first_known, b.first_known):
        return None
    here, there = ([_key(item) for item in side.came.get(step, ())] for side in (a, b))
    if here == there:
        return None
    parts = [*_only(a, b, here, there), *_only(b, a, there, here)]
    return Divergence(step, "input", _some(parts or ["they come in another order"]))


def _key(item: Add | Abort) -> _Input:
    if isinstance(item, Add):
        return "arrives", item.rid, item.prompt
    return "is aborted", item.rid, ()


def _only(side: _Side, other: _Side, these: list[_Input], those: list[_Input]) -> Iterator[str]:
    others = {(what, rid) for what, rid, _ in those}
    for what, rid, prompt in these:
        if (what, rid, prompt) in those:
            continue
        if (what, rid) not in others:
            yield f"r{rid} {what} in {side.name} and not in {other.name}"
        elif side.name == "a":
            yield f"r{rid} {what} with another prompt"


# ---- decisions -----------------------------------------------------------------------------------


def _decisions(step: int, a: _Side, b: _Side) -> Divergence | None:
    ours, theirs = a.trace[step], b.trace[step]
    if ours is theirs:
        return None
    here, there = _rows(ours), _rows(theirs)
    out = set(ours.plan.preempt) ^ set(theirs.plan.preempt)
    if not out and here.keys() == there.keys() and all(_same(here[r], there[r]) for r in here):
        return None
    alone = [*_left_out(a, b, here, theirs), *_left_out(b, a, there, ours)]
    # where a prompt goes first, that others do not decode only follows from it
    parts = [text for _, text in sorted(alone, key=lambda item: not item[0])]
    both = [rid for rid in here if rid in there and not _same(here[rid], there[rid])]
    parts += [_cut(a, b, step, rid) for rid in both]
    for rid in sorted(out):
        side = a if rid in ours.plan.preempt else b
        parts.append(f"{side.name} preempts r{rid}")
    return Divergence(step, "decision", _some(parts), _states(step, a, b))


def _rows(record: StepRecord) -> dict[int, Row]:
    return {row.rid: row for row in record.batch.rows}


def _same(one: Row, other: Row) -> bool:
    return (one.start, one.length) == (other.start, other.length)


def _left_out(
    side: _Side, other: _Side, rows: Mapping[int, Row], record: StepRecord
) -> Iterator[tuple[bool, str]]:
    """(whether it is a prompt, the sentence) for who runs on one side alone.

    Those of whom the other says the same are told together.
    """
    alike: dict[tuple[str, str], list[str]] = {}
    running = _rows(record)
    for rid, row in rows.items():
        if rid not in running:
            verb, name = _row(row)
            alike.setdefault((verb, other.why_not(record, rid)), []).append(name)
    for (verb, why), who in alike.items():
        yield verb == "prefills", f"{side.name} {verb} {names(who)}, {other.name} does not: {why}"


def _cut(a: _Side, b: _Side, step: int, rid: int) -> str:
    """A request that runs on both sides, with other positions."""
    records = a.trace[step], b.trace[step]
    (verb, here), (other, there) = (_row(_rows(record)[rid]) for record in records)
    found = [_reused(record, rid) for record in records]
    why = f": {found[0]} positions were in the cache against {found[1]}"
    return f"a {verb} {here}, b {other} {there}" + (why if found[0] != found[1] else "")


def _reused(record: StepRecord, rid: int) -> int:
    events = (event for event in record.events if isinstance(event, Reused) and event.rid == rid)
    return sum(event.num_tokens for event in events)


def _row(row: Row) -> tuple[str, str]:
    if row.token_ids is None:
        return "decodes", f"r{row.rid}"
    return "prefills", f"r{row.rid}[{row.start}:{row.start + row.length}]"


def _states(step: int, a: _Side, b: _Side) -> str:
    here, there = a.state(step), b.state(step)
    parts = [
        f"{name} {here[name]} against {there[name]}"
        for name in here
        if name in there and here[name] != there[name]
    ]
    return f"before it {', '.join(parts)}" if parts else ""


# ---- outcomes ------------------------------------------------------------------------------------


def _outcomes(step: int, a: _Side, b: _Side) -> Divergence | None:
    ours, theirs = a.trace[step], b.trace[step]
    if ours is theirs:
        return None
    here, there = (_tokens(record) for record in (ours, theirs))
    parts = [
        f"r{rid}'s next token is {token} in a, {there[rid]} in b"
        for rid, token in here.items()
        if token != there[rid]
    ]
    ends, others = _ends(ours), _ends(theirs)
    for rid in dict.fromkeys((*ends, *others)):
        if (end := ends.get(rid)) != (other := others.get(rid)):
            parts.append(f"r{rid} {_ended(end)} in a, {_ended(other)} in b")
    for side, record in ((a, ours), (b, theirs)):
        if record.outcome.error is not None and ours.outcome.error != theirs.outcome.error:
            parts.insert(0, f"the step failed in {side.name}: {record.outcome.error}")
    return Divergence(step, "outcome", _some(parts)) if parts else None


def _tokens(record: StepRecord) -> dict[int, int | None]:
    rows = zip(record.batch.rows, record.outcome.tokens, strict=True)
    return {row.rid: token for row, token in rows}


def _ends(record: StepRecord) -> dict[int, str]:
    """Who ended by this outcome; an abort is an input."""
    events = (event for event in record.events if isinstance(event, Finished))
    return {event.rid: event.reason for event in events if event.reason != "abort"}


def _ended(reason: str | None) -> str:
    return "goes on" if reason is None else f"ends ({reason})"


def _end(step: int, a: _Side, b: _Side) -> Divergence | None:
    if len(a.trace) == len(b.trace):
        return None
    more, less = (a, b) if len(a.trace) > len(b.trace) else (b, a)
    left = less.trace[step - 1].gauges if step > less.trace.history.first else None
    unfinished = left.waiting + left.running if left else 0
    why = f"{unfinished} requests of {less.name} are not over" if unfinished else ""
    return Divergence(step, "end", f"{less.name} has no such step, {more.name} goes on", why)


def _some(parts: Sequence[str]) -> str:
    more = len(parts) - _SHOWN
    return "; ".join(parts[:_SHOWN]) + (f"; and {more} more differences" if more > 0 else "")
