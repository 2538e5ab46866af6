"""Some steps under a profiler: which kernels they took, how long each, and what they leave free.

Plain arithmetic over spans, in seconds of ``time.perf_counter``. Who made them is the runner's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from minisgl.core import KernelSpan, StepRecord
from minisgl.display import Html, card, counted, line, table
from minisgl.registry import find
from minisgl.trace.chrome import save_chrome
from minisgl.trace.frames import as_frame
from minisgl.trace.timeline import HOST, Account, account

if TYPE_CHECKING:
    import pandas

_TOP: Final = 12  # kernels that a summary names
_GRAPHS: Final = " graphs"  # ends the name of a lane whose spans hold those of others


class Total(NamedTuple):
    """All calls of one kernel. share: of the time in which the devices computed these steps."""

    name: str
    calls: int
    seconds: float
    share: float


@dataclass(frozen=True)
class Profile:
    """What ``engine.profile`` saw.

    records: of the profiled steps, and of those that were in flight before; steps: the profiled
    ones. spans: what the devices did for these, kernel by kernel; a replay of a CUDA graph is a
    span too, on a lane of its own, over its kernels.
    """

    records: tuple[StepRecord, ...] = field(repr=False)
    steps: range
    spans: tuple[KernelSpan, ...] = field(repr=False)

    @property
    def kernels(self) -> tuple[KernelSpan, ...]:
        """The spans but for the replays of graphs, which hold them."""
        return tuple(span for span in self.spans if not span.lane.endswith(_GRAPHS))

    @property
    def busy(self) -> float:
        """Device seconds from the begin to the end of each of these batches, all lanes together."""
        return math.fsum(
            span.end - span.start
            for record in self._mine()
            for span in record.spans
            if span.lane != HOST
        )

    @property
    def covered(self) -> float:
        """The part of ``busy`` in which kernels ran, 0 to 1; the rest is bubbles inside of batches.

        NaN if nothing was timed.
        """
        lanes: dict[str, list[tuple[float, float]]] = {}
        for span in self.kernels:
            if span.step is not None:
                lanes.setdefault(_device(span.lane), []).append((span.start, span.end))
        seconds = math.fsum(_union(some) for some in lanes.values())
        return min(1.0, seconds / self.busy) if self.busy else math.nan

    def timeline(self) -> Account:
        """The same steps' time on the clock; see ``trace.timeline``."""
        return account(self.records, self.steps)

    def totals(self) -> list[Total]:
        """Every kernel of the batches by name, the longest in all first."""
        seconds: dict[str, list[float]] = {}
        for span in self.kernels:
            if span.step is not None:
                seconds.setdefault(span.name, []).append(span.end - span.start)
        busy = self.busy or math.nan
        out = [Total(n, len(s), math.fsum(s), math.fsum(s) / busy) for n, s in seconds.items()]
        return sorted(out, key=lambda total: (-total.seconds, total.name))

    def to_frame(self) -> pandas.DataFrame:
        """A row for each span: ``step`` (None: of no batch), ``lane``, ``name``, ``start``, ``end``
        and ``launched`` (None where host and device are one)."""
        names = ("step", *(name for name in KernelSpan._fields if name != "step"))
        rows = ({name: getattr(span, name) for name in names} for span in self.spans)
        return as_frame(rows, names)

    def summary(self, top: int = _TOP) -> str:
        """Where the devices' time went, and the longest kernels."""
        totals = self.totals()
        lines = [*self._says()]
        for total in totals[:top]:
            name = total.name if len(total.name) <= 60 else f"{total.name[:59]}…"
            each = _time(total.seconds / total.calls)
            lines.append(f"{total.share:7.1%}  {total.calls:6,} x {each:>9}  {name}")
        if rest := totals[top:]:
            share = math.fsum(total.share for total in rest)
            lines.append(f"{share:7.1%}  {counted(len(rest), 'other kernel')}")
        return "\n".join(lines)

    def plot(self, first: int | None = None, last: int | None = None, ax: Any = None) -> Any:
        """Host, devices and kernels of these steps on the clock, as ``trace.plot.timeline`` draws.

        first, last: the steps to show, both included; all by default. Raises ValueError where none
        of them was profiled, ModuleNotFoundError without matplotlib (the extra [lab]).
        """
        start = self.steps.start if first is None else first
        stop = self.steps.stop if last is None else last + 1
        if not (self.steps.start <= start < stop <= self.steps.stop):
            raise ValueError(f"steps {start} to {stop - 1} were asked, there are {self._range()}")
        return find("view", "profile")(self, range(start, stop), ax)

    def save_chrome(self, path: str | PathLike[str]) -> None:
        """Write host, devices, kernels and requests in Chrome's trace format, for Perfetto.

        Arrows go from where the host launched a kernel, or a graph, to where it ran.
        """
        save_chrome(self.records, path, self.spans)

    def __repr__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> Html:
        says, *more = self._says()
        rows = (
            (total.name, f"{total.share:.1%}", total.calls, _time(total.seconds / total.calls))
            for total in self.totals()
        )
        heads = ("kernel", "share", "calls", "each")
        return card("Profile", says, *map(line, more), table(heads, rows))

    def _says(self) -> Iterator[str]:
        if not self.steps:
            yield "no step was run"
            return
        kernels = [span for span in self.kernels if span.step is not None]
        yield f"{self._range()}: {counted(len(kernels), 'kernel')}"
        graphs = sum(span.lane.endswith(_GRAPHS) for span in self.spans)
        if graphs:
            inside = "replay of a CUDA graph" if graphs == 1 else "replays of CUDA graphs"
            yield f"{graphs} {inside}"
        if self.busy:
            yield (
                f"devices computed for {_time(self.busy)}: kernels {self.covered:.1%}, "
                f"between them {1 - self.covered:.1%}"
            )

    def _range(self) -> str:
        first, last = self.steps.start, self.steps.stop - 1
        return f"step {first}" if first == last else f"steps {first} to {last}"

    def _mine(self) -> Sequence[StepRecord]:
        return [record for record in self.records if record.batch.step in self.steps]


def _device(lane: str) -> str:
    """The device of a kernel's lane: "device 1 stream 7" is on "device 1"."""
    return lane.rsplit(" stream ", 1)[0].removesuffix(" operators")


def _union(intervals: Iterable[tuple[float, float]]) -> float:
    """How long at least one of them lasts."""
    seconds, until = 0.0, -math.inf
    for start, end in sorted(intervals):
        seconds += max(0.0, end - max(start, until))
        until = max(until, end)
    return seconds


def _time(seconds: float) -> str:
    unit, size = ("s", 1.0) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-3 else ("µs", 1e-6)
    return f"{seconds / size:.2f} {unit}"
