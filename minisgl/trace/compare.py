"""Two runs side by side: where they part, and what became of each request in both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from minisgl.core import Evicted, FinishReason
from minisgl.display import Html, card, counted, line, table
from minisgl.registry import find
from minisgl.trace.divergence import Divergence, divergence, settings
from minisgl.trace.frames import as_frame
from minisgl.trace.lives import Life, lives
from minisgl.trace.trace import Trace

if TYPE_CHECKING:
    import pandas


class Traced(Protocol):
    """An engine, as far as it is compared."""

    @property
    def trace(self) -> Trace:
        """Its history so far."""
        ...


class Pair(NamedTuple):
    """One request in both runs; None on the side where it does not arrive.

    equal: whether it has the same tokens on both sides; first_difference: the first index of its
    output that has not. waited, latency: in steps; computed, reused: in positions.
    """

    rid: int
    equal: bool | None
    first_difference: int | None
    output_a: int | None
    output_b: int | None
    computed_a: int | None
    computed_b: int | None
    reused_a: int | None
    reused_b: int | None
    waited_a: int | None
    waited_b: int | None
    latency_a: int | None
    latency_b: int | None
    finish_a: FinishReason | None
    finish_b: FinishReason | None


@dataclass(frozen=True)
class Comparison:
    """Two runs, aligned by step and by rid. ``minisgl.compare(a, b)`` makes one.

    divergence: the first difference, None if there is none. settings: what differs in model and
    configuration, name -> (a's, b's). requests: those that arrive in either run's kept history.
    totals: numbers of both whole runs, name -> (a's, b's).
    """

    a: Trace = field(repr=False)
    b: Trace = field(repr=False)
    divergence: Divergence | None
    settings: Mapping[str, tuple[Any, Any]]
    requests: tuple[Pair, ...]
    totals: Mapping[str, tuple[int, int]]

    @property
    def step(self) -> int | None:
        """The first step in which the runs differ; None if they do not."""
        return None if self.divergence is None else self.divergence.step

    def plot(self) -> Any:
        """Both runs' lanes, one above the other, with the step at which they part.

        Raises ModuleNotFoundError without matplotlib (the extra [lab]).
        """
        return find("view", "compare")(self)

    def inspect(self) -> Any:
        """The inspector on both: their lanes over one another, the parting marked.

        Raises ModuleNotFoundError without anywidget (the extra [lab]).
        """
        return find("view", "both")(self.a, self.b, self._parting())

    def save_html(self, path: str | PathLike[str], redact: bool = False) -> None:
        """Write the same as one page; as ``Trace.save_html``."""
        runs = [("a", self.a), ("b", self.b)]
        find("view", "page")(runs, path, self._parting(), redact)

    def _parting(self) -> dict[str, Any] | None:
        if self.divergence is None:
            return None
        words = "; ".join(filter(None, (self.divergence.what, self.divergence.why)))
        return {"step": self.divergence.step, "words": words}

    def to_frame(self) -> pandas.DataFrame:
        """A row for each ``Pair``."""
        return as_frame((pair._asdict() for pair in self.requests), Pair._fields)

    def __repr__(self) -> str:
        width = max(map(len, self.totals))
        lines = [*self._words(), f"{'':{width}} {'a':>9} {'b':>9}"]
        lines += [f"{name:{width}} {x:>9} {y:>9}" for name, (x, y) in self.totals.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> Html:
        first, *words = self._words()
        totals = ((name, x, y) for name, (x, y) in self.totals.items())
        pairs = [
            (f"r{p.rid}", _told(p), p.waited_a, p.waited_b, p.latency_a, p.latency_b)
            for p in self.requests
        ]
        heads = ("request", "tokens", "waited in a", "in b", "latency in a", "in b")
        tables = table(("whole run", "a", "b"), totals), table(heads, pairs)
        return card("Comparison", first, *map(line, words), *tables)

    def _words(self) -> Iterator[str]:
        if self.divergence is None:
            yield f"a and b are the same in all of {counted(len(self.a), 'step')}"
        else:
            yield f"a and b part in {self.divergence}"
        differ = [f"{name}: {x!r} against {y!r}" for name, (x, y) in self.settings.items()]
        yield f"they differ in {', '.join(differ)}" if differ else "they have one configuration"
        both = [pair for pair in self.requests if pair.equal is not None]
        same = sum(pair.equal is True for pair in both)
        yield f"{counted(len(both), 'request')} in both, {same:,} with the same tokens in both"
        for side, other in (("a", "output_b"), ("b", "output_a")):
            alone = [f"r{pair.rid}" for pair in self.requests if getattr(pair, other) is None]
            if alone:
                more = f" and {len(alone) - 8} more" if len(alone) > 8 else ""
                yield f"in {side} alone: {', '.join(alone[:8])}{more}"


def compare(a: Traced | Trace, b: Traced | Trace) -> Comparison:
    """Hold two runs against each other, engines or traces: where they part and why, request by
    request.

    Raises TypeError for anything else, ValueError if no step is kept of both.
    """
    one, other = _trace(a), _trace(b)
    here, there = lives(one.history.records), lives(other.history.records)
    pairs = tuple(_pair(rid, here.get(rid), there.get(rid)) for rid in sorted({*here, *there}))
    x, y = _totals(one, here), _totals(other, there)
    totals = {name: (x[name], y[name]) for name in x}
    return Comparison(one, other, divergence(one, other), settings(one, other), pairs, totals)


def _trace(run: Traced | Trace) -> Trace:
    trace = run if isinstance(run, Trace) else getattr(run, "trace", None)
    if not isinstance(trace, Trace):
        raise TypeError(f"an engine or a trace is compared, got {run!r:.80}")
    return trace


def _pair(rid: int, a: Life | None, b: Life | None) -> Pair:
    equal = first = None
    if a is not None and b is not None:
        equal = a.output == b.output
        if not equal:
            same = (i for i, (x, y) in enumerate(zip(a.output, b.output, strict=False)) if x != y)
            first = next(same, min(len(a.output), len(b.output)))
    fields: dict[str, Any] = {}
    for side, life in (("a", a), ("b", b)):
        fields[f"output_{side}"] = None if life is None else len(life.output)
        for name in ("computed", "reused", "waited", "latency", "finish"):
            fields[f"{name}_{side}"] = None if life is None else getattr(life, name)
    return Pair(rid, equal, first, **fields)


def _totals(trace: Trace, known: Mapping[int, Life]) -> dict[str, int]:
    records, num_pages = trace.history.records, trace.config.limits.num_pages
    gone = (e for record in records for e in record.events if isinstance(e, Evicted))
    held = (num_pages - r.gauges.free_pages - r.gauges.evictable_pages for r in records)
    everyone = known.values()
    return {
        "steps": len(records),
        "positions computed": sum(record.batch.num_tokens for record in records),
        "positions reused": sum(life.reused for life in everyone),
        "tokens generated": sum(len(life.output) for life in everyone),
        "steps waited": sum(life.waited for life in everyone),
        "preemptions": sum(life.preemptions for life in everyone),
        "pages evicted": sum(len(event.pages) for event in gone),
        "most pages held after a step": max(held, default=0),
    }


def _told(pair: Pair) -> str:
    if pair.equal is None:
        return "in b alone" if pair.output_a is None else "in a alone"
    return "the same" if pair.equal else f"differ from {pair.first_difference} on"
