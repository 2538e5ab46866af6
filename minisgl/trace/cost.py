"""What a token of a prompt costs on this run's device, estimated from the spans."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from minisgl.core import StepRecord

_SINGULAR: Final = 1e-9  # below it, two columns say the same


def seconds_per_token(records: Iterable[StepRecord]) -> float:
    """An estimate of the device time that one more token of a prompt takes; NaN without spans.

    The times of the batches are taken for ``prompt tokens * a + decode rows * b + c``, with no
    cost below zero, and of relative errors the squares are made least. What attention costs more
    at later positions is not in it, so what a run saves by reuse is a little less than this says.
    """
    rows, best = [], (math.inf, math.nan)
    for record in records:
        if seconds := _seconds(record):
            prompt = sum(r.length for r in record.batch.rows if r.token_ids is not None)
            decodes = sum(r.token_ids is None for r in record.batch.rows)
            rows.append((prompt / seconds, decodes / seconds, 1 / seconds))
    if not any(row[0] for row in rows):
        return math.nan
    for used in ((0,), (0, 1), (0, 2), (0, 1, 2)):  # which of the three cost anything at all
        costs = _least_squares([[row[i] for i in used] for row in rows])
        if costs is None or min(costs) < 0:
            continue
        fits = (_dot(costs, [row[i] for i in used]) for row in rows)
        best = min(best, (math.fsum((1 - fit) ** 2 for fit in fits), costs[0]))
    return best[1]


def _seconds(record: StepRecord) -> float:
    """How long a batch took: its lanes work side by side."""
    lanes: dict[str, float] = {}
    for span in record.spans:
        if span.lane != "host":
            lanes[span.lane] = lanes.get(span.lane, 0.0) + span.end - span.start
    return max(lanes.values(), default=0.0)


def _least_squares(rows: Sequence[Sequence[float]]) -> list[float] | None:
    """The x for which ``rows @ x`` is nearest to ones; None if more than one is."""
    n = len(rows[0])
    norms = [math.sqrt(math.fsum(row[i] ** 2 for row in rows)) for i in range(n)]
    if not all(norms):
        return None
    columns = [[row[i] / norms[i] for row in rows] for i in range(n)]
    table = [[_dot(a, b) for b in columns] + [math.fsum(a)] for a in columns]
    for i in range(n):  # Gauss and Jordan; the diagonal of a Gram matrix needs no exchange
        if table[i][i] < _SINGULAR:
            return None
        table[i] = [value / table[i][i] for value in table[i]]
        for j in range(n):
            if j != i:
                factor = table[j][i]
                table[j] = [a - factor * b for a, b in zip(table[j], table[i], strict=True)]
    return [table[i][n] / norms[i] for i in range(n)]


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))
