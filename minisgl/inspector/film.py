"""A run as columns for the renderer: what every view of every step needs, and only what changed.

It replays the history's inputs through a scheduler of its own, so it needs nothing but a trace and
says of each step exactly what the engine's scheduler knew when the step's record was made. It looks
only at the pages that a door has touched; ``tests/inspector/test_film.py`` holds it against the
scheduler's whole state. The format is described in ``minisgl/inspector/columns.py``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, get_args

from minisgl.config import EngineConfig
from minisgl.core import (
    Abort,
    Add,
    Added,
    Admitted,
    Batch,
    Change,
    Event,
    Evicted,
    Finished,
    FinishReason,
    Inserted,
    Outcome,
    Plan,
    Preempted,
    Released,
    Request,
    Reused,
    Sampled,
    StepRecord,
    Why,
)
from minisgl.inspector.columns import GAUGES, Columns
from minisgl.kvcache.base import NodeView
from minisgl.trace import timeline
from minisgl.trace.sentence import sentence
from minisgl.trace.timeline import CAUSES
from minisgl.trace.trace import Trace

WHY: Final = tuple(Why)
EVENTS: Final = (
    Added,
    Admitted,
    Reused,
    Inserted,
    Evicted,
    Preempted,
    Sampled,
    Finished,
    Released,
)
_NUMBER_OF_WHY: Final = {why: n for n, why in enumerate(WHY)}
_NUMBER_OF: Final[Mapping[type[Event], int]] = {kind: n for n, kind in enumerate(EVENTS)}
REASONS: Final[tuple[FinishReason, ...]] = get_args(FinishReason)
PREFILL, DECODE, ZOMBIE = range(3)  # kinds of rows; a zombie's request is over, it is dropped
# Token ids given of a prompt's beginning and end, and of a node: enough to recognise it by.
HEAD, TAIL, NODE_HEAD = 160, 96, 48
_OWN: Final = 1000  # different reasons that a policy may give
_NEAR: Final = 8  # steps before, whose spans say what the host did in a gap
_SHORT: Final = 300  # steps of a run whose time is added up after every one
_ALWAYS_TOLD = ("overlap", "prefix_cache", "policy", "page_size")


class _Node(NamedTuple):
    """A node as it was told last."""

    parent: int
    depth: int
    used: int
    pages: tuple[int, ...]
    head: tuple[int, ...]


class Film:
    """One run's columns, read on from where the last reading ended.

    redact: leave all token ids and text out. like: a film of the same run, from which this one is
    read on where it ends; what has numbers there keeps them.
    """

    def __init__(self, trace: Trace, redact: bool = False, like: Film | None = None) -> None:
        self.history = trace.history
        self._trace, self._redact = trace, redact
        self._next = trace.history.first
        self._state = trace.start()
        self._in_flight: deque[Batch] = deque()
        self._told_pages: dict[int, tuple[int, int, int]] = {}  # holders, node, owner
        self._told_nodes: dict[int, _Node] = {}
        self._owner: dict[int, int] = {}
        self._over: set[int] = set()
        self._words: set[int] = set()
        # A policy's own reasons, numbered after ours, and which of them this film has told.
        self._reasons: dict[str, int] = {} if like is None else like._reasons
        self._told_reasons: dict[int, str] = {}
        self._lanes: dict[str, int] = {}
        self._names: dict[str, int] = {}
        self._ends: dict[str, int] = {}  # nanoseconds at which each lane's last span ended
        self._origin: float | None = None
        self._totals: dict[str, Any] = {}
        self._counted = 0  # steps when they were added up last

    @property
    def num_steps(self) -> int:
        """Steps told so far, forgotten ones included."""
        return self._next

    def read(self) -> bytes:
        """The chunk of the steps that were recorded since; b"" if there are none."""
        first, last = self._next, len(self.history)
        if first == last:
            return b""
        out = Columns()
        words: dict[str, str] = {}
        say, gaps = list[str](), self._gaps(first, last)
        for k in range(first, last):
            record = self.history.record(k)
            out.begin_step()
            if k == self.history.first:
                self._tell_beginning(out, words)
            touched = self._pass(k, out, words)
            self._tell_record(record, gaps, out, words)
            self._tell_pages(touched, out, words)
            say.append(sentence(record))
        self._next = last
        header: dict[str, Any] = {"first": first, "steps": last - first, "say": say, "words": words}
        header |= {"lanes": list(self._lanes), "names": list(self._names)}
        header["reasons"], self._told_reasons = self._told_reasons, {}
        header["kept"] = self.history.first  # what was before it can be forgotten
        self._count_time(last)
        header["totals"] = self._totals
        if first == self.history.first:
            header["about"] = self._about()
        return out.pack(header)

    def _about(self) -> dict[str, Any]:
        config, default = self._trace.config, EngineConfig()
        told = [
            [name, _word(getattr(config, name))]
            for name in EngineConfig.describe()
            if name in _ALWAYS_TOLD or getattr(config, name) != getattr(default, name)
        ]
        return {
            "model": self._trace.model,
            "page_size": config.page_size,
            "num_pages": config.num_pages,
            "max_step_tokens": config.max_step_tokens,
            "max_running": config.max_running,
            "redacted": self._redact,
            "origin": self._origin,
            "config": told,
            "why": [[why.name, why.value] for why in WHY],
            "events": [kind.__name__.lower() for kind in EVENTS],
            "reasons": list(REASONS),
            "causes": list(CAUSES),
        }

    # ---- the host's state ------------------------------------------------------------------------

    def _pass(self, k: int, out: Columns, words: dict[str, str]) -> set[int]:
        """Let the inputs of record k through the doors; returns the pages they may have changed."""
        state, touched = self._state, set[int]()
        for item in self.history.inputs_of(k):
            match item:
                case Add():
                    self._tell_request(state.add(item)[0], out, words)
                case Abort():
                    held = self._held([item.rid])
                    self._touch(touched, state.abort(item), held)
                case Change():
                    state.change(item)
                case Plan():
                    held = self._held(item.preempt)
                    batch, events = state.commit(item)
                    self._in_flight.append(batch)
                    self._touch(touched, events, held)
                    for event in events:
                        if isinstance(event, Reused):
                            self._tell_hits(event.rid, event.pages, out)
                    for row in batch.rows:
                        if not row.new_pages:
                            continue
                        touched.update(row.new_pages)
                        # an admitted request's first row also names the pages that it reuses
                        reused = 0 if row.first_page else row.start // state.limits.page_size
                        self._owner.update(dict.fromkeys(row.new_pages[reused:], row.rid))
                case Outcome():
                    rids = [row.rid for row in self._in_flight.popleft().rows]
                    if item.error is not None:  # it empties the prefix cache
                        touched.update(page for node in state.pool.nodes() for page in node.pages)
                        rids = list(state.running)
                    held = self._held(rids)
                    self._touch(touched, state.apply(item), held)
        return touched

    def _held(self, rids: Iterable[int]) -> dict[int, tuple[Request, list[int]]]:
        """These requests with the pages they have, before a door may take them away."""
        running = self._state.running
        return {rid: (r, r.pages) for rid in rids if (r := running.get(rid)) is not None}

    def _touch(
        self,
        touched: set[int],
        events: Sequence[Event],
        held: dict[int, tuple[Request, list[int]]],
    ) -> None:
        """Note the pages whose holders, or whose place in the tree, these events may change."""
        running, pool = self._state.running, self._state.pool
        for event in events:
            if type(event) is Sampled:  # most are, and a token changes no page
                continue
            match event:
                case Evicted(pages=pages):
                    touched.update(pages)
                case Reused(rid=rid) | Inserted(rid=rid) if rid not in held:
                    touched.update(running[rid].pages)
                case Inserted(rid=rid):
                    touched.update(held[rid][1])
                case Released(rid=rid):
                    request, had = held[rid]
                    touched.update(had)
                    # what it shares with a twin was cached as the twin's, and may have been split
                    whole = len(request.tokens) // pool.page_size
                    touched.update(pool.match(request.tokens, whole))

    # ---- what is told ----------------------------------------------------------------------------

    def _tell_beginning(self, out: Columns, words: dict[str, str]) -> None:
        """The state where the history begins, if its beginning was forgotten."""
        state = self._state
        for request in (*state.waiting.values(), *state.running.values()):
            self._tell_request(request, out, words)
            self._owner.update(dict.fromkeys(request.pages, request.rid))
        for request in state.running.values():
            shared = (page for page in request.pages if self._owner[page] != request.rid)
            self._tell_hits(request.rid, shared, out)
        self._in_flight.extend(state.in_flight)
        self._tell_pages(state.pool.used, out, words)

    def _tell_record(
        self,
        record: StepRecord,
        gaps: Mapping[int, Sequence[timeline.Gap]],
        out: Columns,
        words: dict[str, str],
    ) -> None:
        for event in record.events:  # an abort comes before the outcome, whose token is dropped
            if isinstance(event, Finished) and event.reason == "abort":
                self._over.add(event.rid)
        over, rows = self._over, record.batch.rows
        rids = [row.rid for row in rows]
        kinds = [DECODE if row.token_ids is None else PREFILL for row in rows]
        if not over.isdisjoint(rids):
            kinds = [ZOMBIE if rid in over else kind for rid, kind in zip(rids, kinds, strict=True)]
        starts, lengths = [row.start for row in rows], [row.length for row in rows]
        out.add_rows("rows", rids, starts, lengths, kinds)
        if record.plan.refusals:
            refused, why, *numbers, own = zip(*record.plan.refusals, strict=True)
            known = [[-1 if n is None else n for n in some] for some in numbers]
            out.add_rows("refusals", refused, list(map(self._number_of, why, own)), *known)
        self._tell_events(record.events, out, words)
        before = dict(self._ends)
        self._tell_spans(record, out)
        for gap in gaps.get(record.batch.step, ()):
            lane, cause = self._lanes[gap.lane], CAUSES.index(gap.cause)
            start, end = self._nanoseconds(gap.start), self._nanoseconds(gap.end)
            # since the lane's last batch, so that a film may begin at any step
            since = start - before.get(gap.lane, 0)
            out.add("gaps", lane=lane, cause=cause, start=since, length=end - start)
        gauges = zip(GAUGES, (*record.gauges, record.outcome.error is not None), strict=True)
        out.set_step(**dict(gauges))

    def _number_of(self, why: Why, own: str | None) -> int:
        """Of a reason; beyond ``_OWN`` different ones of a policy, the rest are not told apart."""
        if own is None or (own not in self._reasons and len(self._reasons) >= _OWN):
            return _NUMBER_OF_WHY[why]
        number = self._reasons.setdefault(own, len(WHY) + len(self._reasons))
        self._told_reasons[number] = own
        return number

    def _tell_events(self, events: Sequence[Event], out: Columns, words: dict[str, str]) -> None:
        kinds, rids, values = list[int](), list[int](), list[int]()
        for event in events:
            kind = type(event)
            kinds.append(_NUMBER_OF[kind])
            rids.append(-1 if isinstance(event, Evicted) else event.rid)
            if isinstance(event, Sampled):  # most of them are
                values.append(event.token)
                continue
            values.append(_value(event))
            if isinstance(event, Finished):
                self._over.add(event.rid)
            elif isinstance(event, Reused | Inserted | Evicted):
                out.extend("events.pages", event.pages)
        self._over.intersection_update(self._state.running)  # nobody else can have a row any more
        sampled = _NUMBER_OF[Sampled]
        if self._redact:
            values = [-1 if k == sampled else v for k, v in zip(kinds, values, strict=True)]
        else:
            told = (v for k, v in zip(kinds, values, strict=True) if k == sampled)
            self._tell_words(told, words)
        out.add_rows("events", kinds, rids, values)

    def _tell_request(self, request: Request, out: Columns, words: dict[str, str]) -> None:
        prompt = () if self._redact else request.prompt
        head, tail = prompt[:HEAD], prompt[max(HEAD, len(prompt) - TAIL) :]
        self._tell_words((*head, *tail), words)
        out.add(
            "requests",
            rid=request.rid,
            prompt_len=request.prompt_len,
            max_tokens=request.sampling.max_tokens,
            arrival=request.arrival,
            head=len(head),
            tail=len(tail),
        )
        out.extend("requests.tokens", (*head, *tail))

    def _tell_hits(self, rid: int, pages: Iterable[int], out: Columns) -> None:
        """Cached pages that a request holds from this step on; it did not compute them."""
        for page in pages:
            out.add("hits", rid=rid, page=page)

    def _tell_pages(self, touched: Iterable[int], out: Columns, words: dict[str, str]) -> None:
        """Those of these pages that changed, and the nodes that changed with them."""
        pool, told = self._state.pool, self._told_pages
        views, home = dict[int, NodeView](), dict[int, int]()
        doubtful = set[int]()  # nodes that lost a page
        changed = list[int]()
        for page in touched:
            if page not in home:
                view = pool.node_of(page)
                if view is None:
                    home[page] = 0
                else:
                    views[view.id] = view
                    home.update(dict.fromkeys(view.pages, view.id))
        for page, node in home.items():
            holders = pool.holders(page)
            if not holders:
                self._owner.pop(page, None)
            now = holders, node, self._owner.get(page, -1)
            before = told.get(page, (0, 0, -1))
            if now != before:
                told[page] = now
                changed.append(page)
                if before[1] not in (0, node):
                    doubtful.add(before[1])
        if changed:
            out.add_rows("pages", changed, *zip(*(told[page] for page in changed), strict=True))
        for gone in doubtful - views.keys():
            left = (pool.node_of(page) for page in self._told_nodes[gone].pages)
            view = next((view for view in left if view is not None and view.id == gone), None)
            if view is not None:
                views[gone] = view
            else:
                del self._told_nodes[gone]
                nothing = dict(parent=0, depth=0, size=0, used=0, maker=-1, said=0)
                out.add("nodes", id=gone, **nothing)
        for view in views.values():
            self._tell_node(view, out, words)

    def _tell_node(self, view: NodeView, out: Columns, words: dict[str, str]) -> None:
        head = () if self._redact else view.tokens[:NODE_HEAD]
        now = _Node(view.parent or 0, view.depth, view.last_used, view.pages, head)
        before = self._told_nodes.get(view.id)
        if now == before:
            return
        self._told_nodes[view.id] = now
        said = 0 if before is not None and before.head == head else 1 + len(head)
        out.add(
            "nodes",
            id=view.id,
            parent=now.parent,
            depth=now.depth,
            size=len(now.pages),
            used=now.used,
            maker=self._owner.get(view.pages[0], -1),
            said=said,
        )
        if said:
            self._tell_words(head, words)
            out.extend("nodes.tokens", head)

    def _tell_spans(self, record: StepRecord, out: Columns) -> None:
        for span in record.spans:
            if self._origin is None:
                self._origin = span.start
            start, end = self._nanoseconds(span.start), self._nanoseconds(span.end)
            lane = self._lanes.setdefault(span.lane, len(self._lanes))
            name = span.name if span.lane == "host" else "step"  # which step it is, the table says
            number = self._names.setdefault(name, len(self._names))
            gap = start - self._ends.get(span.lane, 0)
            self._ends[span.lane] = end
            out.add("spans", lane=lane, name=number, gap=gap, length=end - start)

    def _nanoseconds(self, at: float) -> int:
        """Since the first span began."""
        return round((at - (self._origin or 0.0)) * 1e9)

    def _gaps(self, first: int, last: int) -> dict[int, list[timeline.Gap]]:
        """The idle times that ended with the batches of these steps."""
        records, begin = self.history.records, self.history.first
        near = records[max(begin, first - _NEAR) - begin : last - begin]
        out: dict[int, list[timeline.Gap]] = {}
        for gap in timeline.gaps(near, range(first - 1, last)):
            out.setdefault(gap.step, []).append(gap)
        return out

    def _count_time(self, last: int) -> None:
        """Add the run up, but in a long one not after every step."""
        if last > _SHORT and last < self._counted * 1.05:
            return
        self._counted = last
        whole = timeline.account(self.history.records)
        work = whole.hidden + whole.exposed
        self._totals = {
            "seconds": whole.total,
            "busy": whole.busy,
            "idle": whole.idle,
            "host": whole.host,
            "hidden_share": whole.hidden_share if work > 0 else None,
        }

    def _tell_words(self, ids: Iterable[int], words: dict[str, str]) -> None:
        decode = self._trace.decode
        if decode is None or self._redact:
            return
        for token in ids:
            if token not in self._words:
                self._words.add(token)
                # after another token: alone, some tokenizers drop the space it begins with
                if word := decode([token, token])[len(decode([token])) :]:
                    words[str(token)] = word


def _value(event: Event) -> int:
    """The number that an event is about."""
    match event:
        case Added(prompt_len=value) | Admitted(slot=value) | Reused(num_tokens=value):
            return value
        case Sampled(token=value) | Released(num_cached=value):
            return value
        case Inserted(pages=pages) | Evicted(pages=pages):
            return len(pages)
        case Finished(reason=reason):
            return REASONS.index(reason)
        case Preempted():
            return -1


def _word(value: object) -> str:
    return getattr(value, "__name__", None) or str(value)
