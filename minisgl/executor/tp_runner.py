"""The runner whose model is shared by several processes, each with a part of every layer.

Batches go to all ranks alike, so none decides anything: the first samples and the others follow.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from minisgl.config import EngineConfig
from minisgl.core import Batch, KernelSpan, Outcome
from minisgl.engine.runner import Launch, Snapshot, Worker
from minisgl.executor import wire
from minisgl.executor.ranks import Answers, Ranks


class TPRunner:
    """Pages and tables on every rank. A fork's are in the same processes, beside the first's.

    Dropped without ``close``, its processes end when it is collected, or when Python exits.
    """

    def __init__(self, ranks: Ranks, number: int) -> None:
        """number: the ranks' name for these pages and tables. Takes over one use of ``ranks``."""
        self._ranks, self._number = ranks, number
        self._dropped = weakref.finalize(self, ranks.drop, number)

    @property
    def workers(self) -> tuple[Worker, ...]:
        """See ``Runner``. A fork's are the same."""
        return self._ranks.workers if self._dropped.alive else ()

    @property
    def broken(self) -> str | None:
        """See ``Runner``."""
        return self._ranks.broken

    def launch(self, batch: Batch) -> Launch:
        """Send a batch to all ranks and return at once.

        Its ``result`` raises what the lowest rank that failed raised, or RuntimeError where one was
        lost, and names the rank. Raises RuntimeError on a closed runner.
        """
        command = wire.Launch(self._number, wire.pack_batch(batch))
        return _Launch(self._open().send(command))

    def snapshot_bytes(self, num_pages: int) -> int:
        """See ``Runner``. On all ranks together."""
        return num_pages * self._ranks.page_bytes

    def snapshot(
        self, pages: Sequence[int], fresh: Sequence[int], base: Snapshot | None
    ) -> Snapshot:
        """See ``Runner``. Each rank keeps its part of it."""
        ranks = self._open()
        assert base is None or isinstance(base, _Snapshot), "a snapshot of another kind of runner"
        contents = _Kept(ranks, len(fresh) * ranks.page_bytes)
        tables = _Kept(ranks, ranks.table_bytes)
        made = ranks.send(wire.Save(self._number, contents.number, tuple(fresh), tables.number))
        contents.made = tables.made = made
        where = {page: (contents, row) for row, page in enumerate(fresh)}
        for page in pages:
            if page not in where:
                assert base is not None, f"page {page} is neither fresh nor in a base"
                where[page] = base.where[page]
        return _Snapshot(where, tables)

    def restore(self, snapshot: Snapshot) -> None:
        """See ``Runner``. Waits until it is done."""
        assert isinstance(snapshot, _Snapshot), "a snapshot of another kind of runner"
        parts = []
        for kept, places in snapshot.by_contents():
            kept.wait()
            pages, rows = zip(*places, strict=True)
            parts.append(wire.Part(kept.number, pages, rows))
        snapshot.tables.wait()
        command = wire.Restore(self._number, tuple(parts), snapshot.tables.number)
        self._open().send(command).result()

    def fork(self) -> TPRunner:
        """See ``Runner``."""
        ranks = self._open()
        twin = ranks.number()
        try:
            ranks.send(wire.Fork(self._number, twin)).result()
        except BaseException:
            ranks.gone.append(twin)  # some ranks may have it
            raise
        ranks.join()
        return TPRunner(ranks, twin)

    @contextmanager
    def profile(self) -> Iterator[list[KernelSpan]]:
        """See ``Runner``. Each rank is watched, and has lanes of its own."""
        ranks, seen = self._open(), list[KernelSpan]()
        ranks.send(wire.Profile(True)).result()
        try:
            yield seen
        finally:
            answers = ranks.send(wire.Profile(False)).result()
        seen += [span for done in answers if isinstance(done, wire.Done) for span in done.seen]
        seen.sort(key=lambda span: span.start)

    def close(self) -> None:
        """Finish what was launched. The last of a runner and its forks ends the processes."""
        if self._dropped.detach() is not None:
            self._ranks.leave(self._number)

    def _open(self) -> Ranks:
        if not self._dropped.alive:
            raise RuntimeError("the runner is closed; load a new engine")
        return self._ranks


class _Launch(NamedTuple):
    answers: Future[Answers]

    def result(self) -> Outcome:
        """The first rank's outcome, with everybody's spans."""
        done = [answer for answer in self.answers.result() if isinstance(answer, wire.Done)]
        outcomes = [answer.outcome for answer in done if answer.outcome is not None]
        spans = tuple(span for outcome in outcomes for span in outcome.spans)
        return outcomes[0]._replace(spans=spans)


class _Kept:
    """Something that every rank keeps under a number, for as long as this object is there."""

    def __init__(self, ranks: Ranks, num_bytes: int) -> None:
        self.number, self.num_bytes = ranks.number(), num_bytes
        self.made: Future[Answers] | None = None
        self._gone: deque[int] = ranks.gone

    def wait(self) -> None:
        """Until it is there. Raises what making it raised."""
        assert self.made is not None, "nobody asked for it"
        self.made.result()

    def __del__(self) -> None:
        self._gone.append(self.number)


class _Snapshot(NamedTuple):
    where: Mapping[int, tuple[_Kept, int]]  # page -> the contents it is in, and the row there
    tables: _Kept

    @property
    def parts(self) -> Mapping[int, int]:
        """See ``Snapshot``. On all ranks together."""
        kept = {contents.number: contents.num_bytes for contents, _ in self.where.values()}
        return {**kept, self.tables.number: self.tables.num_bytes}

    def by_contents(self) -> Iterator[tuple[_Kept, list[tuple[int, int]]]]:
        """Each kept contents with the (page, row) pairs that are in it."""
        places: dict[_Kept, list[tuple[int, int]]] = {}
        for page, (contents, row) in self.where.items():
            places.setdefault(contents, []).append((page, row))
        return iter(places.items())


def start_ranks(
    folder: Path, config: EngineConfig, depth: int, patience: float = 300.0
) -> TPRunner:
    """Start ``config.tp`` processes, each reading its part of the weights in ``folder``.

    config: resolved. depth: batches that may be in flight. patience: seconds that a rank waits for
    the others in a collective.
    Raises what loading raises, naming the rank; RuntimeError for a process that ended.
    """
    return TPRunner(Ranks(folder, config, depth, patience), 0)
