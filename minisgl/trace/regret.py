"""What was evicted too early: tokens whose pages were forgotten and then computed again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from minisgl.core import (
    Abort,
    Add,
    Admitted,
    Batch,
    Change,
    Event,
    Evicted,
    Input,
    Inserted,
    Outcome,
    Plan,
    Request,
    Reused,
    Row,
)
from minisgl.display import Html, card, table
from minisgl.scheduler.scheduler import Scheduler
from minisgl.trace.frames import SHOWN, as_frame
from minisgl.trace.provenance import Owners, taken

if TYPE_CHECKING:
    import pandas


class Regret(NamedTuple):
    """Tokens that one step evicted and one request computed again.

    evicted_for: the requests that took pages in the step, in the order of its batch. owner: who had
    computed the tokens; None: before the history began. again_by, again_at: who had to compute them
    once more, and the first step that did.
    """

    evicted_at: int
    evicted_for: tuple[int, ...]
    owner: int | None
    again_by: int
    again_at: int
    tokens: int


@dataclass(frozen=True)
class Regrets:
    """Every ``Regret`` of a run, in the order of computing again. ``trace.regret()`` makes one.

    evicted: all tokens whose pages were evicted; computed: all tokens of prompts that were
    computed. A page that was evicted once may have to be computed again several times.
    """

    regrets: tuple[Regret, ...]
    evicted: int
    computed: int

    @property
    def tokens(self) -> int:
        """All tokens that were computed although they had been in the cache."""
        return sum(regret.tokens for regret in self.regrets)

    def to_frame(self) -> pandas.DataFrame:
        """A row for each ``Regret``."""
        return as_frame(self._rows(), Regret._fields)

    def _rows(self) -> Iterator[dict[str, Any]]:
        return (regret._asdict() for regret in self.regrets)

    def __repr__(self) -> str:
        lines = [
            f"{self.tokens} of {self.computed} prompt tokens computed had been evicted before; "
            f"{self.evicted} tokens were evicted in all"
        ]
        largest = self._largest()
        for at, needing, owner, again, when, tokens in largest:
            lines.append(
                f"step {at} evicted {tokens} tokens of {_owner(owner)} for {_names(needing)}; "
                f"r{again} computed them again from step {when}"
            )
        if more := len(self.regrets) - len(largest):
            lines.append(f"... and {more} smaller ones: see to_frame()")
        return "\n".join(lines)

    def _repr_html_(self) -> Html:
        says, *_ = repr(self).splitlines()
        heads = ("evicted in step", "for", "of", "tokens", "computed again by", "from step")
        rows = (
            (at, _names(needing), _owner(owner), tokens, f"r{again}", when)
            for at, needing, owner, again, when, tokens in self._largest()
        )
        return card("Regret", says, table(heads, rows, len(self.regrets)))

    def _largest(self) -> list[Regret]:
        return sorted(self.regrets, key=lambda regret: -regret.tokens)[:SHOWN]


class _Lost(NamedTuple):
    """How a prefix's last page left the cache."""

    step: int
    needing: tuple[int, ...]
    owner: int | None


def regret(inputs: Iterable[Input], start: Scheduler) -> Regrets:
    """Replay ``inputs`` from ``start``, which this changes, and watch what leaves the cache.

    A row counts where the request could have found the page, had it stayed: not for tokens that it
    generates, nor for a prompt whose logprobs it asked for.
    """
    watch = _Watch(start)
    for item in inputs:
        match item:
            case Add():
                watch.requests[item.rid] = start.add(item)[0]
            case Abort():
                watch.see(start.abort(item))
            case Change():
                start.change(item)
            case Plan():
                watch.launched(*start.commit(item))
            case Outcome():
                watch.see(start.apply(item))
                if item.error is not None:  # the cache is empty now, and nobody evicted it
                    watch.forget()
    found = (Regret(*which, *told) for which, told in watch.regrets.items())
    ordered = sorted(found, key=lambda r: (r.again_at, r.again_by, r.evicted_at))
    return Regrets(tuple(ordered), watch.num_evicted, watch.num_computed)


class _Watch:
    """What the cache holds and held, as exact prefixes.

    A prefix of whole pages is named by a number: that of (the number of the prefix one page
    shorter, the tokens of its last page). Equal prefixes, and only those, have the same number.
    """

    def __init__(self, state: Scheduler) -> None:
        self.size = state.limits.page_size
        self.requests: dict[int, Request] = {**state.waiting, **state.running}
        self.cached: dict[int, int] = {}  # page -> the prefix that it ends
        self.num_evicted = self.num_computed = 0
        self.regrets: dict[tuple[int, tuple[int, ...], int | None, int], list[int]] = {}
        self._numbers: dict[tuple[int | None, tuple[int, ...]], int] = {}
        self._prefixes: dict[int, list[int]] = {}  # of a request, as far as asked
        self._tables = {rid: list(request.pages) for rid, request in self.requests.items()}
        self._lost: dict[int, _Lost] = (
            {}
        )  # by prefix: when it left last; nobody asks while it is back
        self._missed: dict[int, dict[int, _Lost]] = {}  # of a request since its admission, by index
        self._owners = Owners(state)
        last: dict[int | None, int | None] = {None: None}
        for node in state.pool.nodes():
            prefix = last[node.parent]
            for at, page in enumerate(node.pages):
                tokens = node.tokens[at * self.size : (at + 1) * self.size]
                self.cached[page] = prefix = self._number(prefix, tokens)
            last[node.id] = prefix

    def launched(self, batch: Batch, events: Iterable[Event]) -> None:
        """Note a commit."""
        for row in batch.rows:
            self._tables.setdefault(row.rid, [])[row.first_page :] = row.new_pages
        shared = {event.rid: len(event.pages) for event in events if isinstance(event, Reused)}
        admitted = {event.rid for event in events if isinstance(event, Admitted)}
        prompts = [row for row in batch.rows if row.token_ids is not None]
        for row in prompts:  # it was matched before this commit evicted anything
            if row.rid in admitted:
                asks = row.draw is not None and row.draw.targets
                self._missed[row.rid] = {} if asks else self._missing(row.rid, shared)
        self.see(events, batch.step, tuple(rid for rid, pages in taken(batch, events) if pages))
        self._owners.take(batch, events)
        for row in prompts:
            self._compute(row, batch.step)

    def _compute(self, row: Row, step: int) -> None:
        """Note which positions of a row would have been found."""
        self.num_computed += row.length
        missed, end = self._missed.get(row.rid, {}), row.start + row.length
        for index in range(row.start // self.size, -(-end // self.size)):
            if lost := missed.get(index):
                first, last = index * self.size, (index + 1) * self.size
                told = self.regrets.setdefault((*lost, row.rid), [step, 0])
                told[1] += min(end, last) - max(row.start, first)

    def see(
        self, events: Iterable[Event], step: int | None = None, needing: tuple[int, ...] = ()
    ) -> None:
        """Note what enters the cache and what leaves it."""
        for event in events:
            match event:
                case Inserted(rid, pages):
                    at = self._tables[rid].index(pages[0])
                    for index, page in enumerate(pages, at):
                        self.cached[page] = self._prefix(rid, index)
                case Evicted(pages):
                    assert step is not None, "only a commit evicts"
                    self.num_evicted += len(pages) * self.size
                    for page in pages:
                        lost = _Lost(step, needing, self._owners[page])
                        self._lost[self.cached.pop(page)] = lost

    def forget(self) -> None:
        """Note that the cache was emptied: had anything stayed, it would be gone now."""
        self.cached.clear()
        self._lost.clear()

    def _missing(self, rid: int, shared: dict[int, int]) -> dict[int, _Lost]:
        """The pages that a request would have found at its admission, had they stayed."""
        missing: dict[int, _Lost] = {}
        for index in range(shared.get(rid, 0), (len(self.requests[rid].tokens) - 1) // self.size):
            lost = self._lost.get(self._prefix(rid, index))
            if lost is None:
                break
            missing[index] = lost
        return missing

    def _prefix(self, rid: int, index: int) -> int:
        """The number of a request's prefix up to and with this page; its tokens are known."""
        known, tokens = self._prefixes.setdefault(rid, []), self.requests[rid].tokens
        for i in range(len(known), index + 1):
            page = tuple(tokens[i * self.size : (i + 1) * self.size])
            known.append(self._number(known[-1] if known else None, page))
        return known[index]

    def _number(self, before: int | None, tokens: tuple[int, ...]) -> int:
        return self._numbers.setdefault((before, tokens), len(self._numbers))


def _owner(rid: int | None) -> str:
    return "earlier requests" if rid is None else f"r{rid}"


def _names(rids: Iterable[int]) -> str:
    return ", ".join(f"r{rid}" for rid in rids)
