"""A run to be looked at: the history's view, its frames and its words. It changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

from minisgl.config import EngineConfig
from minisgl.core import Added, Event, Sampled, StepRecord
from minisgl.registry import find
from minisgl.scheduler.replay import fresh, replay
from minisgl.scheduler.scheduler import Scheduler
from minisgl.trace import file, frames
from minisgl.trace.card import trace_card
from minisgl.trace.chrome import save_chrome
from minisgl.trace.describe import Description, describe
from minisgl.trace.explain import Explanation, explain
from minisgl.trace.history import History
from minisgl.trace.regret import Regrets, regret
from minisgl.trace.reuse import Reuses, reuse
from minisgl.trace.timeline import Account, account

if TYPE_CHECKING:
    import pandas

Kind = Literal["steps", "requests", "events", "spans", "pages"]


class Trace:
    """The records of a run: ``len``, ``trace[k]``, iteration, frames, explanations, files."""

    def __init__(
        self,
        history: History,
        header: file.Header,
        start: Scheduler | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        """start: the scheduler's state where the history begins, if that was forgotten before.

        decode: turns token ids into text, for those who show it.
        """
        self._history, self._header, self._start = history, header, start
        self.decode = decode

    @property
    def config(self) -> EngineConfig:
        """The resolved configuration of the run."""
        return self._header.config

    @property
    def model(self) -> str:
        """What was loaded, as it was asked for."""
        return self._header.model

    def __len__(self) -> int:
        """How many steps there were, forgotten ones included."""
        return len(self._history)

    def __getitem__(self, k: int) -> StepRecord:
        """The record of step k; from the end where k is negative. Raises IndexError."""
        return self._history.record(k if k >= 0 else len(self) + k)

    def __iter__(self) -> Iterator[StepRecord]:
        """The records that are kept."""
        return iter(self._history.records)

    @property
    def history(self) -> History:
        """The inputs and records that this shows."""
        return self._history

    def __repr__(self) -> str:
        requests = sum(isinstance(event, Added) for event in self._events())
        first = f" from step {self._history.first}" if self._history.first else ""
        return f"Trace({len(self)} steps, {requests} requests{first})"

    def _repr_html_(self) -> str:
        return trace_card(repr(self)[6:-1], self.model, self._history.records)

    # ---- words -----------------------------------------------------------------------------------

    def explain(self, rid: int) -> Explanation:
        """Where a request's time went, in steps; its parts sum to the latency exactly.

        Raises KeyError for a request that this trace does not know from its arrival on.
        """
        return explain(self._history.records, rid)

    def story(self, rid: int) -> list[str]:
        """Every transition that touched a request, a sentence each. Raises KeyError."""
        lines = [
            f"step {record.batch.step}: {_sentence(event)}"
            for record in self
            for event in record.events
            if getattr(event, "rid", None) == rid and not isinstance(event, Sampled)
        ]
        if not lines:
            raise KeyError(f"request {rid} is not in this trace")
        return lines

    def describe(self, times: bool = False) -> Description:
        """The run in words: who came, what was computed and reused, who waited longest and why.

        times: tell the shares of the timeline too; without them equal runs read alike.
        """
        records, pages = self._history.records, self.config.limits.num_pages
        timeline = self.timeline() if times else None
        return describe(records, pages, self.regret().tokens, timeline)

    def timeline(self, steps: range | None = None) -> Account:
        """Where the time went on the clock: busy and idle devices, hidden and exposed host work.

        steps: of which steps alone, such as ``range(10, 20)``.
        """
        return account(self._history.records, steps)

    # ---- the prefix cache ------------------------------------------------------------------------

    def reuse(self) -> Reuses:
        """What each request found in the prefix cache, who had computed it, and what it saved."""
        return reuse(self._history.records, self.start())

    def regret(self) -> Regrets:
        """What was evicted and computed again: by whom, for whom, when, and how much."""
        history = self._history
        return regret(history.inputs(history.first_input, history.num_inputs), self.start())

    # ---- views -----------------------------------------------------------------------------------

    @property
    def plot(self) -> Any:
        """Figures: ``lanes``, ``tree``, ``pages``, ``batch``, ``timeline``, ``budget``.

        Raises ModuleNotFoundError without matplotlib (the extra [lab]).
        """
        try:
            return find("view", "plot")(self)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != "matplotlib":
                raise
            message = "figures need matplotlib: pip install 'minisgl[lab]'"
            raise ModuleNotFoundError(message, name=error.name) from error

    def save_html(self, path: str | PathLike[str], redact: bool = False) -> None:
        """Write the inspector with this run as one page that opens from disk, without a network.

        redact: leave all text and token ids out.
        """
        find("view", "page")([("run", self)], path, None, redact)

    # ---- frames ----------------------------------------------------------------------------------

    def to_frame(self, kind: Kind = "steps") -> pandas.DataFrame:
        """One of five tables as a pandas frame, with plain columns and one row per thing.

        steps: a row per step; requests: per request, with the steps it waited and its times to the
        first token and between tokens (``ttft``, ``tpot``, ``itl_p50``, ``itl_p99``; seconds of the
        host's clock); events: per event; spans: per interval of the timeline, in seconds; pages:
        per page of the pool, at the end.
        Raises ValueError for another kind, ModuleNotFoundError without pandas (the extra [lab]).
        """
        tables, records = frames.BY_RECORDS, self._history.records
        if kind == "pages":
            return frames.as_frame(frames.pages(self.scheduler()))
        if kind not in tables:
            raise ValueError(f"unknown frame {kind!r}; there are {', '.join(tables)}, pages")
        return frames.as_frame(tables[kind](records))

    def _events(self) -> Iterator[Event]:
        return (event for record in self for event in record.events)

    # ---- replay and files ------------------------------------------------------------------------

    def start(self) -> Scheduler:
        """The scheduler as it stood where the history begins; a copy of your own."""
        if self._start is None:
            return fresh(self._header.origin, self._header.eos)
        return self._start.copy()

    def scheduler(self, step: int | None = None) -> Scheduler:
        """The scheduler as it stood when the record of a step was made, or now: a replay's result.

        With overlap the next step was committed by then. Raises IndexError for a step that is not
        kept.
        """
        history, state = self._history, self.start()
        if step is None:
            return replay(history.inputs(history.first_input, history.num_inputs), state)
        history.record(step)
        for k in range(history.first, step + 1):
            replay(history.inputs_of(k), state)
        return state

    def check_whole(self) -> None:
        """Raise ValueError if the beginning of the history was forgotten."""
        if self._history.first:
            raise ValueError(
                f"the first {self._history.first} steps were forgotten, so it cannot be replayed; "
                f"load with a larger history, or history=None to keep all"
            )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the run as JSON lines; ``Trace.load`` reads it. Token ids are in it, no text.

        Raises ValueError if the beginning of the history was forgotten.
        """
        self.check_whole()
        file.save(path, self._header, self._history)

    @staticmethod
    def load(path: str | PathLike[str]) -> Trace:
        """Read what ``save`` wrote, and rebuild every record by replaying the inputs.

        A last line that was cut off is left out, with a warning. Raises ValueError naming the line
        for anything else that is not such a file, or that its own inputs contradict.
        """
        header, history, start = file.load(path)
        return Trace(history, header, start)

    def save_chrome(self, path: str | PathLike[str]) -> None:
        """Write the timeline in Chrome's trace format, for Perfetto or chrome://tracing."""
        save_chrome(self._history.records, path)


def _sentence(event: Event) -> str:
    fields = ", ".join(
        f"{name.replace('_', ' ')} {len(value) if isinstance(value, tuple) else value}"
        for name, value in event._asdict().items()
        if name != "rid"
    )
    return f"{type(event).__name__.lower()} ({fields})" if fields else type(event).__name__.lower()
