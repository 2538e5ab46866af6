"""A run as tables: plain columns, one row per thing. pandas comes with the extra ``[lab]``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from minisgl.core import Added, Finished, Preempted, Reused, Sampled, StepRecord
from minisgl.scheduler.scheduler import Scheduler

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
    """A row per request that arrives in these records."""
    table: dict[int, dict[str, Any]] = {}
    for record in records:
        step = record.batch.step
        for event in record.events:
            if isinstance(event, Added):
                table[event.rid] = {
                    "rid": event.rid,
                    "prompt_len": event.prompt_len,
                    "reused": 0,
                    "output_len": 0,
                    "preemptions": 0,
                    "added": step,
                    "first_token": None,
                    "finished": None,
                    "finish": None,
                }
            row = table.get(getattr(event, "rid", -1))
            if row is None:
                continue
            match event:
                case Reused(num_tokens=reused):
                    row["reused"] += reused
                case Preempted():
                    row["preemptions"] += 1
                case Sampled():
                    row["output_len"] += 1
                    if row["first_token"] is None:
                        row["first_token"] = step
                case Finished(reason=reason):
                    row |= {"finished": step, "finish": reason}
    yield from table.values()


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
