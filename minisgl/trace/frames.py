"""A run as tables: plain columns, one row per thing. pandas comes with the extra ``[lab]``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Any, Final

from minisgl.core import Reused, StepRecord
from minisgl.scheduler.scheduler import Scheduler
from minisgl.trace.lives import lives

if TYPE_CHECKING:
    import pandas

SHOWN: Final = 12  # lines of a long list that its repr shows; to_frame has all

Rows = Iterator[Mapping[str, Any]]


def as_frame(
    rows: Iterable[Mapping[str, Any]], columns: Iterable[str] | None = None
) -> pandas.DataFrame:
    """Rows as a pandas frame. Raises ModuleNotFoundError, naming the way out, without pandas.

    columns: their names, for there may be no rows.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("frames need pandas: pip install 'minisgl[lab]'") from error
    frame: pandas.DataFrame = pandas.DataFrame(
        list(rows), columns=None if columns is None else list(columns)
    )
    return frame


def steps(records: Sequence[StepRecord]) -> Rows:
    """A row per step: what it computed, whom it refused, the gauges after it, seconds."""
    for record in records:
        rows = record.batch.rows
        decodes = sum(row.token_ids is None for row in rows)
        yield {
            "step": record.batch.step,
            "prefill_rows": len(rows) - decodes,
            "decode_rows": decodes,
            "computed": record.batch.num_tokens,
            "reused": sum(e.num_tokens for e in record.events if isinstance(e, Reused)),
            "refused": len({refusal.rid for refusal in record.plan.refusals}),
            **record.gauges._asdict(),
            **_seconds(record),
        }


def requests(records: Sequence[StepRecord]) -> Rows:
    """A row per request that arrives in these records; its times are the host's, in seconds.

    waited: steps without a row, as ``explain`` counts them. ttft: from the start of planning the
    first step that could know of it, to when the host had its first token; how long it lay there
    before, a step at most, nobody records. tpot: mean time of a token after the first. itl_p50,
    itl_p99: percentiles of the times between its tokens. None where no times were recorded.
    """
    planned, known = _clock(records)
    for life in lives(records).values():
        times = [known[step] for step in life.steps if step in known]
        gaps = sorted(b - a for a, b in pairwise(times)) if len(times) == len(life.steps) else []
        begin = planned.get(life.arrival)
        yield {
            "rid": life.rid,
            "prompt_len": life.prompt_len,
            "reused": life.reused,
            "output_len": len(life.output),
            "preemptions": life.preemptions,
            "added": life.added,
            "first_token": life.steps[0] if life.steps else None,
            "finished": life.over,
            "finish": life.finish,
            "waited": life.waited,
            "ttft": times[0] - begin if times and begin is not None else None,
            "tpot": sum(gaps) / len(gaps) if gaps else None,
            "itl_p50": _percentile(gaps, 0.5),
            "itl_p99": _percentile(gaps, 0.99),
        }


def _clock(records: Sequence[StepRecord]) -> tuple[dict[int, float], dict[int, float]]:
    """By step: when the host began to plan it, and when it had its tokens."""
    planned, known = dict[int, float](), dict[int, float]()
    for record in records:
        for span in record.spans:
            if span.lane == "host" and span.name == "plan":
                planned[record.batch.step] = span.start
            elif span.lane == "host" and span.name == "wait":
                known[record.batch.step] = span.end
    return planned, known


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share does not exceed; None of nothing."""
    return ordered[ceil(share * len(ordered)) - 1] if ordered else None


def events(records: Sequence[StepRecord]) -> Rows:
    """A row per event, with the event's own fields as columns."""
    for record in records:
        step = record.batch.step
        for event in record.events:
            yield {"step": step, "event": type(event).__name__.lower(), **event._asdict()}


def spans(records: Sequence[StepRecord]) -> Rows:
    """A row per interval of the timeline, in seconds."""
    for record in records:
        for span in record.spans:
            yield {"step": record.batch.step, **span._asdict()}


def pages(state: Scheduler) -> Rows:
    """A row per page of the pool: its holders, and the running requests among them."""
    owners: dict[int, list[int]] = {}
    for request in state.running.values():
        for page in request.pages:
            owners.setdefault(page, []).append(request.rid)
    for page, holders in enumerate(state.pool.counts):
        held = tuple(owners.get(page, ()))
        cached = state.pool.is_cached(page)
        yield {"page": page, "holders": holders, "cached": cached, "requests": held}


BY_RECORDS: Final[Mapping[str, Callable[[Sequence[StepRecord]], Rows]]] = {
    "steps": steps,
    "requests": requests,
    "events": events,
    "spans": spans,
}


def _seconds(record: StepRecord) -> dict[str, float]:
    """Seconds spent, by the host's activities and by the device lanes together."""
    out = {"host_seconds": 0.0, "wait_seconds": 0.0, "device_seconds": 0.0}
    for span in record.spans:
        key = "device" if span.lane != "host" else "wait" if span.name == "wait" else "host"
        out[f"{key}_seconds"] += span.end - span.start
    return out
