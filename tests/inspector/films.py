"""A second reader of the film's format, and what must be true of every film."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from minisgl.core import Finished, Reused
from minisgl.inspector.columns import TABLES
from minisgl.trace import Trace

Row = dict[str, int]


class Seen:
    """A film read from its bytes alone: per step its rows, and the state that they add up to."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []  # by step: gauges, and each table's rows
        self.first = 0
        self.words: dict[str, str] = {}
        self.header: dict[str, Any] = {}
        self.about: dict[str, Any] = {}
        self.pages: dict[int, Row] = {}
        self.nodes: dict[int, Row] = {}
        self.node_tokens: dict[int, list[int]] = {}
        self.states: list[tuple[dict[int, Row], dict[int, Row], dict[int, list[int]]]] = []

    def read(self, film: bytes) -> Seen:
        """Chunks, one after another."""
        while film:
            assert film[:4] == b"MSGL"
            version, length = struct.unpack_from("<II", film, 4)
            assert version == 1 and (12 + length) % 8 == 0
            header = json.loads(film[12 : 12 + length])
            self._chunk(header, film[: header["size"]])
            film = film[header["size"] :]
        return self

    def _chunk(self, header: dict[str, Any], chunk: bytes) -> None:
        columns: dict[str, list[int]] = {}
        for name, (dtype, offset, count) in header["columns"].items():
            assert offset % 8 == 0
            raw = np.frombuffer(chunk, "<" + dtype, count, offset)
            columns[name] = [int(value) for value in raw]
        if not self.steps:
            self.first, self.about = header["first"], header["about"]
        assert header["first"] == self.first + len(self.steps)
        assert len(header["say"]) == header["steps"] == len(columns["steps.rows"])
        self.words |= header["words"]
        self.header = header
        at = dict.fromkeys((*TABLES, "tokens"), 0)
        for k in range(header["steps"]):
            step: dict[str, Any] = {"say": header["say"][k]}
            for name in ("free", "cached", "evictable", "promised", "waiting", "running", "failed"):
                step[name] = columns[f"steps.{name}"][k]
            for table, names in TABLES.items():
                end = at[table] + columns[f"steps.{table}"][k]
                step[table] = [
                    {name: columns[f"{table}.{name}"][i] for name in names}
                    for i in range(at[table], end)
                ]
                at[table] = end
            for row in step["pages"]:
                self.pages[row["page"]] = row
            for row in step["nodes"]:
                if row["size"] == 0:
                    del self.nodes[row["id"]], self.node_tokens[row["id"]]
                    continue
                self.nodes[row["id"]] = row
                if row["said"]:
                    end = at["tokens"] + row["said"] - 1
                    self.node_tokens[row["id"]] = columns["nodes.tokens"][at["tokens"] : end]
                    at["tokens"] = end
            self.states.append((dict(self.pages), dict(self.nodes), dict(self.node_tokens)))
            self.steps.append(step)


def holds_against(trace: Trace, seen: Seen, every: int = 1) -> None:
    """Assert that a film says of each step what the trace and a whole replay say."""
    assert seen.first == trace.history.first and seen.first + len(seen.steps) == len(trace)
    over: set[int] = set()
    for k, step in enumerate(seen.steps, seen.first):
        record = trace[k]
        names = ("free", "cached", "evictable", "promised", "waiting", "running")
        assert tuple(step[name] for name in names) == tuple(record.gauges)
        ended = [event for event in record.events if isinstance(event, Finished)]
        over |= {event.rid for event in ended if event.reason == "abort"}
        want = [
            (row.rid, row.start, row.length, 2 if row.rid in over else int(row.token_ids is None))
            for row in record.batch.rows
        ]
        assert [tuple(row.values()) for row in step["rows"]] == want
        over |= {event.rid for event in ended}
        assert len(step["refusals"]) == len(record.plan.refusals)
        assert len(step["events"]) == len(record.events)
        if (k - seen.first) % every == 0 or k == len(trace) - 1:
            _state_holds(trace, k, seen)
    if not seen.first:
        events = [event for record in trace for event in record.events]
        reused = [(e.rid, page) for e in events if isinstance(e, Reused) for page in e.pages]
        hits = [tuple(row.values()) for step in seen.steps for row in step["hits"]]
        assert hits[: len(reused)] == reused, "of a step in flight, only the hits are told"


def _state_holds(trace: Trace, k: int, seen: Seen) -> None:
    pages, nodes, tokens = seen.states[k - seen.first]
    state = trace.scheduler(k)
    counts = state.pool.counts
    free = {"holders": 0, "node": 0, "owner": -1}
    assert [pages.get(page, free)["holders"] for page in range(len(counts))] == list(counts)
    want = {node.id: node for node in state.pool.nodes()}
    home = {page: node.id for node in want.values() for page in node.pages}
    assert {p: row["node"] for p, row in pages.items() if row["node"]} == home, f"step {k}"
    assert nodes.keys() == want.keys(), f"step {k}"
    for id_, node in want.items():
        row = nodes[id_]
        told = (row["parent"], row["depth"], row["size"], row["used"])
        assert told == (node.parent or 0, node.depth, len(node.pages), node.last_used), f"step {k}"
        assert tokens[id_] == list(node.tokens[:48])
    if any(trace[before].outcome.error for before in range(seen.first, k + 1)):
        return  # what it reused is nobody's any more
    for rid, request in state.running.items():
        mine = [page for page, row in pages.items() if row["owner"] == rid]
        assert set(mine) >= set(request.pages) - set(home), "who computed a page owns it"
