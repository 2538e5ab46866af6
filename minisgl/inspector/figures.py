"""Figures of what was recorded, one message each. matplotlib comes with the extra ``[lab]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minisgl.core import Added, Finished, Reused, StepRecord

# A state keeps its colour everywhere. From petroff6, which stays apart under colour blindness.
WAITING, REUSED, PREFILL, DECODE = "#b0b0b0", "#f89c20", "#5790fc", "#964a8b"


def lanes(records: Sequence[StepRecord], ax: Any = None) -> Any:
    """Who ran in which step: a lane for each request, from waiting through prefill to decode.

    Chunks carry the number of positions they computed; an orange mark says how many came from the
    prefix cache. ax: matplotlib Axes to draw on, a new figure by default. Returns the Axes.
    Raises ValueError if there is nothing to draw.
    """
    if not records:
        raise ValueError("no step was recorded; run the engine first")
    rids = sorted({row.rid for record in records for row in record.batch.rows})
    lane = {rid: i for i, rid in enumerate(rids)}
    first, last = records[0].batch.step, records[-1].batch.step
    if ax is None:
        from matplotlib.figure import Figure

        width, height = min(16.0, 3 + 0.24 * (last - first + 1)), 1.4 + 0.3 * len(rids)
        ax = Figure(figsize=(width, height), layout="constrained").subplots()
    since: dict[int, int] = {}
    until = dict.fromkeys(rids, last + 1)
    for record in records:
        step = record.batch.step
        for event in record.events:
            match event:
                case Added(rid=rid):
                    since[rid] = step
                case Finished(rid=rid):
                    until[rid] = step + 1
                case Reused(rid=rid, num_tokens=reused) if rid in lane:
                    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
                    text = {"color": REUSED, "fontsize": 7, "ha": "right", "va": "center"}
                    ax.text(step, lane[rid], str(reused), fontweight="bold", bbox=box, **text)
    for rid in rids:
        start = since.get(rid, first)
        ax.plot([start, until[rid]], [lane[rid]] * 2, color=WAITING, lw=1, zorder=0)
    for record in records:
        for row in record.batch.rows:
            decode = row.token_ids is None
            colour, y = (DECODE if decode else PREFILL), lane[row.rid]
            ax.barh(y, 0.86, left=record.batch.step + 0.07, height=0.7, color=colour)
            if not decode:
                middle = record.batch.step + 0.5
                text = {"fontsize": 6, "ha": "center", "va": "center", "color": "white"}
                ax.text(middle, y, str(row.length), rotation=90 if row.length > 99 else 0, **text)
    ax.set_yticks(range(len(rids)), [f"r{rid}" for rid in rids])
    ax.set_ylim(len(rids) - 0.4, -0.6)
    ax.set_xlim(first - 1.2, last + 1.2)
    ax.set_xlabel("step")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    legend = [("waiting", WAITING), ("from the prefix cache", REUSED)]
    for label, colour in [*legend, ("prefill", PREFILL), ("decode", DECODE)]:
        ax.plot([], [], "s", color=colour, label=label)
    ax.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, labelcolor="linecolor"
    )
    return ax
