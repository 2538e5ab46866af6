"""What a device did, kernel by kernel: torch's profiler, read on the host's clock.

The profiler writes Chrome trace events in microseconds of a clock of its own. Marks that are taken
on both clocks, before and after, tie it to ``time.perf_counter``; a mark around each batch says
whose step launched what. The kernels of a CUDA graph carry the correlation id of its launch.
Source: libkineto's output_json.cpp, for the names of the fields.
"""

from __future__ import annotations

import json
import os
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Final

import torch
from torch._C._profiler import _ExperimentalConfig, _RecordFunctionFast
from torch.autograd import profiler

from minisgl.core import Batch, KernelSpan
from minisgl.executor.clock import Anchor, HostTime
from minisgl.kernel.functions import marked

Event = Mapping[str, Any]

_ANCHOR, _STEP = "minisgl clock ", "minisgl step "
_TRIES: Final = 5  # anchors at either end, of which the narrowest counts
_ON_DEVICE: Final = ("kernel", "gpu_memcpy", "gpu_memset")
_CALLS: Final = ("cuda_runtime", "cuda_driver")


class Profiler:
    """Sees what this process computes within its context. ``spans`` has it afterwards.

    lane: the device's. Nothing may be under way at either end. One at a time in a process: torch's
    own is one, and two of them end it. Raises RuntimeError if there is one already.
    """

    def __init__(self, lane: str, device: torch.device) -> None:
        self.spans: tuple[KernelSpan, ...] = ()
        self._lane, self._stack = lane, ExitStack()
        self._cuda = device.type == "cuda"
        self._anchors: list[tuple[float, float]] = []

    def __enter__(self) -> Profiler:
        if profiler._is_profiler_enabled:
            raise RuntimeError("a profiler of torch is on in this process; end that one first")
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it writes to stderr at each start and end
        self._seen = profiler.profile(
            use_kineto=True,
            use_device="cuda" if self._cuda else None,
            # a CPU computes on a thread of its own, a GPU's work is queued on this one
            experimental_config=_ExperimentalConfig(profile_all_threads=not self._cuda),
        )
        with self._stack:
            self._stack.enter_context(self._seen)
            self._stack.enter_context(marked(_RecordFunctionFast))
            self._mark()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            self._mark()
        if error is None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "trace.json"
                self._seen.export_chrome_trace(str(path))
                self.spans = read(path, self._lane, self._cuda, self._anchors)

    def marked(self, run: Callable[[Batch], Any]) -> Callable[[Batch], Any]:
        """The same, and what it calls counts as its batch's."""

        def within(batch: Batch) -> Any:
            with profiler.record_function(f"{_STEP}{batch.step}"):
                return run(batch)

        return within

    def _mark(self) -> None:
        for _ in range(_TRIES):
            before = perf_counter()
            with profiler.record_function(f"{_ANCHOR}{len(self._anchors)}"):
                pass
            self._anchors.append((before, perf_counter()))


def read(
    path: Path, lane: str, cuda: bool, anchors: Sequence[tuple[float, float]]
) -> tuple[KernelSpan, ...]:
    """The spans in a file that the profiler wrote, by time.

    cuda: whether the device is a GPU: then its kernels, copies and graphs; else the outermost
    operators of the threads that computed batches. anchors: the host's time before and after each
    mark; the first half of them was made at the beginning. Raises ValueError if they are not there.
    """
    written = json.loads(path.read_text(encoding="utf-8", errors="replace"), strict=False)
    events = [event for event in written["traceEvents"] if event.get("ph") == "X"]
    to_host, find = host_time(events, anchors), _on_device if cuda else _operators
    out = [
        span._replace(
            start=to_host(span.start * 1e-6),
            end=to_host(span.end * 1e-6),
            launched=None if span.launched is None else to_host(span.launched * 1e-6),
        )
        for span in find(events, lane, _Marks(events))
    ]
    return tuple(sorted(out, key=lambda span: (span.start, -span.end)))


def host_time(events: Iterable[Event], anchors: Sequence[tuple[float, float]]) -> HostTime:
    """What turns the profiler's seconds into the host's. See ``read``."""
    found: tuple[list[Anchor], list[Anchor]] = [], []
    for event in events:
        if event.get("cat") == "user_annotation" and event["name"].startswith(_ANCHOR):
            number = int(event["name"].removeprefix(_ANCHOR))
            at = (event["ts"] + event["dur"] / 2) * 1e-6
            found[number >= len(anchors) // 2].append(Anchor(at, *anchors[number]))
    if not all(found):
        raise ValueError("the profiler lost the marks that tie its clock to the host's")
    return HostTime(*found)


class _Marks:
    """The marks around batches, one after the other: which step was under way at a time of the
    profiler, and on which threads there were any."""

    def __init__(self, events: Iterable[Event]) -> None:
        mine = [
            event
            for event in events
            if event.get("cat") == "user_annotation" and event["name"].startswith(_STEP)
        ]
        marks = [
            (event["ts"], event["ts"] + event["dur"], int(event["name"].removeprefix(_STEP)))
            for event in mine
        ]
        self._marks, self.threads = sorted(marks), {event["tid"] for event in mine}
        self._starts = [start for start, _, _ in self._marks]

    def step(self, at: float) -> int | None:
        """Whose batch was being launched, or on a CPU computed, then."""
        before = bisect_right(self._starts, at) - 1
        return self._marks[before][2] if before >= 0 and at <= self._marks[before][1] else None


def _on_device(events: Sequence[Event], lane: str, marks: _Marks) -> Iterator[KernelSpan]:
    """In the profiler's microseconds. A graph lasts from its first kernel to its last one's end."""
    calls = {
        event["args"]["correlation"]: event
        for event in events
        if event.get("cat") in _CALLS and "correlation" in event.get("args", {})
    }
    graphs: dict[int, list[Event]] = {}
    for event in events:
        if event.get("cat") not in _ON_DEVICE:
            continue
        about = event["args"]
        call = calls.get(about.get("correlation"))
        step, launched = (None, None) if call is None else (marks.step(call["ts"]), call["ts"])
        if call is not None and "GraphLaunch" in call["name"]:
            graphs.setdefault(about["correlation"], []).append(event)
        on = f"{lane} stream {about.get('stream', event['tid'])}"
        start = event["ts"]
        yield KernelSpan(on, event["name"], start, start + event["dur"], step, launched)
    for correlation, kernels in graphs.items():
        call = calls[correlation]
        start = min(kernel["ts"] for kernel in kernels)
        end = max(kernel["ts"] + kernel["dur"] for kernel in kernels)
        name = f"graph of {len(kernels)} kernels"
        yield KernelSpan(f"{lane} graphs", name, start, end, marks.step(call["ts"]), call["ts"])


def _operators(events: Iterable[Event], lane: str, marks: _Marks) -> Iterator[KernelSpan]:
    """In the profiler's microseconds: what was called on the threads that computed batches."""
    calls = [e for e in events if e.get("cat") == "cpu_op" and e["tid"] in marks.threads]
    over: dict[Any, float] = {}
    for event in sorted(calls, key=lambda event: (event["ts"], -event["dur"])):
        start, end = event["ts"], event["ts"] + event["dur"]
        if start >= over.get(event["tid"], start):
            over[event["tid"]] = end
            yield KernelSpan(f"{lane} operators", event["name"], start, end, marks.step(start))
