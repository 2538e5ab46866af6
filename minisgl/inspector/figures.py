"""Figures of what was recorded, one message each. matplotlib comes with the extra ``[lab]``."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from minisgl.core import Added, Finished, Reused, StepRecord

# A state keeps its colour everywhere. From petroff6, which stays apart under colour blindness.
WAITING, REUSED, PREFILL, DECODE = "#b0b0b0", "#f89c20", "#5790fc", "#964a8b"


class Picture(Figure):
    """A figure that a notebook shows with its description in words, for those who do not see it."""

    alt = ""

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        data = io.BytesIO()
        self.savefig(data, format="png", dpi=100)
        image = base64.b64encode(data.getvalue()).decode()
        return {"image/png": image, "text/plain": self.alt}, {"image/png": {"alt": self.alt}}


def lanes(records: Sequence[StepRecord], ax: Axes | None = None) -> Axes:
    """Who ran in which step: a lane for each request, from waiting through prefill to decode.

    Chunks carry the number of positions they computed; an orange number is how many came from the
    prefix cache. ax: where to draw, a new ``Picture`` by default. Returns the Axes.
    Raises ValueError if there is nothing to draw.
    """
    rids = sorted({row.rid for record in records for row in record.batch.rows})
    if not rids:
        raise ValueError("no step that computes anything was given; run the engine first")
    lane = {rid: i for i, rid in enumerate(rids)}
    first, last = records[0].batch.step, records[-1].batch.step
    if ax is None:
        width, height = min(16.0, 3 + 0.24 * (last - first + 1)), 1.4 + 0.3 * len(rids)
        picture = Picture(figsize=(width, height), layout="constrained")
        picture.alt = describe_lanes(records)
        ax = picture.subplots()
    since, until = dict.fromkeys(rids, first), dict.fromkeys(rids, last + 1)
    for record in records:
        for event in record.events:
            match event:
                case Added(rid=rid):
                    since[rid] = record.batch.step
                case Finished(rid=rid):
                    until[rid] = record.batch.step + 1
                case Reused(rid=rid, num_tokens=reused) if rid in lane:
                    _reused(ax, record.batch.step, lane[rid], reused)
        for row in record.batch.rows:
            chunk = None if row.token_ids is None else row.length
            _box(ax, record.batch.step, lane[row.rid], chunk)
    for rid in rids:
        ax.plot([since[rid], until[rid]], [lane[rid]] * 2, color=WAITING, lw=1, zorder=0)
    ax.set_yticks(range(len(rids)), [f"r{rid}" for rid in rids])
    ax.set_ylim(len(rids) - 0.4, -0.6)
    ax.set_xlim(first - 1.2, last + 1.2)
    ax.set_xlabel("step")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    legend = [("waiting", WAITING), ("from the prefix cache", REUSED)]
    for label, colour in [*legend, ("prefill", PREFILL), ("decode", DECODE)]:
        ax.plot([], [], "s", color=colour, label=label)
    where: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 4}
    ax.legend(frameon=False, labelcolor="linecolor", **where)
    return ax


def describe_lanes(records: Sequence[StepRecord]) -> str:
    """What ``lanes`` draws, in words: a line for each request."""
    prefills: dict[int, list[str]] = {}
    decodes: dict[int, list[int]] = {}
    reused: dict[int, int] = {}
    for record in records:
        for event in record.events:
            if isinstance(event, Reused):
                reused[event.rid] = event.num_tokens
        for row in record.batch.rows:
            if row.token_ids is None:
                decodes.setdefault(row.rid, []).append(record.batch.step)
            else:
                chunk = f"{row.length} in step {record.batch.step}"
                prefills.setdefault(row.rid, []).append(chunk)
    lines = []
    for rid in sorted(prefills.keys() | decodes.keys()):
        parts = [f"{reused[rid]} positions from the cache"] if rid in reused else []
        if rid in prefills:
            parts.append("prefill " + ", ".join(prefills[rid]))
        if rid in decodes:
            parts.append(f"decode in steps {decodes[rid][0]} to {decodes[rid][-1]}")
        lines.append(f"r{rid}: " + "; ".join(parts))
    return "\n".join(lines)


def _box(ax: Axes, step: int, y: int, chunk: int | None) -> None:
    ax.barh(y, 0.86, left=step + 0.07, height=0.7, color=DECODE if chunk is None else PREFILL)
    if chunk is not None:
        turned: dict[str, Any] = {"rotation": 90 if chunk > 99 else 0, "color": "white"}
        ax.text(step + 0.5, y, str(chunk), fontsize=6, ha="center", va="center", **turned)


def _reused(ax: Axes, step: int, y: int, positions: int) -> None:
    style: dict[str, Any] = {"color": REUSED, "fontsize": 7, "fontweight": "bold"}
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    ax.text(step, y, str(positions), ha="right", va="center", bbox=box, **style)
