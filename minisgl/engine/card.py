"""An engine at a glance: what it does with its pages, who runs, who waits, who is through."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, islice

from minisgl.config import EngineConfig
from minisgl.core import Gauges, Request
from minisgl.display import MOST, Html, Part, bar, card, counted, line, table


def engine_card(
    says: str, config: EngineConfig, gauges: Gauges, requests: Mapping[int, Request]
) -> Html:
    """The toggles and pages of an engine, and its requests: the running, the waiting, the others.

    config: resolved; what depends on the machine is left out, so the same run looks the same.
    """
    free, evictable = gauges.free_pages, gauges.evictable_pages
    pages = (
        Part("held", config.limits.num_pages - free - evictable, "prefill"),
        Part("evictable", evictable, "evictable"),
        Part("free", free, "free"),
    )
    toggles = (
        f"policy {config.policy_name}",
        f"admission {config.admission}",
        "overlap" if config.overlap else "no overlap",
        f"{config.prefix_cache} prefix cache",
        "chunked prefill" if config.chunked_prefill else "no chunked prefill",
        f"{config.limits.num_pages} pages of {counted(config.page_size, 'position')}",
    )
    by_state: dict[str, list[Request]] = {"running": [], "waiting": [], "over": []}
    for request in requests.values():
        by_state.get(request.state, by_state["over"]).append(request)
    by_state["over"].reverse()  # the latest are of interest
    rows = (_row(request) for request in chain.from_iterable(by_state.values()))
    heads = ("request", "state", "prompt", "reused", "output", "text")
    return card(
        "Engine",
        says,
        line(" · ".join(toggles)),
        bar("pages", pages),
        table(heads, islice(rows, MOST), len(requests)),
    )


def _row(request: Request) -> tuple[object, ...]:
    text = request.text if request.decode else request.shown(request.output)
    state = request.state
    return (f"r{request.rid}", state, request.prompt_len, request.cached, len(request.output), text)
