"""Timelines kept in a file, to be looked at where there is no GPU: CUDA graphs and overlap, each on
and off, a short run of each arm as it is and one under the profiler.

``minisgl bench --timeline FILE`` records one. Times are kept to a tenth of a microsecond; of the
profiled run the kernels of the first steps are kept, and of batches what a timeline shows.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

from minisgl.bench.files import check_writable, write_whole
from minisgl.bench.work import Work, equal
from minisgl.build import load
from minisgl.core import (
    Batch,
    Gauges,
    KernelSpan,
    Outcome,
    Plan,
    Row,
    SamplingParams,
    Span,
    StepRecord,
)
from minisgl.display import Html, card, line, table
from minisgl.engine.engine import Engine
from minisgl.trace.profile import Profile

STORED: Final = Path(__file__).parent / "data" / "timeline_gpu.json"
COMMAND: Final = "minisgl bench --timeline minisgl/bench/data/timeline_gpu.json"
_KEPT: Final = 4  # profiled steps of an arm: a step with the prompts, three that decode
_DECODES: Final = 12
_TICK: Final = 1e-7  # seconds of a time in the file
_FORMAT: Final = "minisgl-timeline"


class Arm(NamedTuple):
    """One way to run the same requests. plain: without a profiler, so it has no kernels."""

    toggles: dict[str, bool]
    plain: Profile
    profiled: Profile

    @property
    def name(self) -> str:
        """What is on and off: ``graphs on, overlap off``."""
        words = {"cuda_graph": "graphs", "overlap": "overlap"}
        return ", ".join(f"{words[k]} {'on' if v else 'off'}" for k, v in self.toggles.items())


class Recording(NamedTuple):
    """A file of timelines. about: where and when it was made, of what, with which versions."""

    about: dict[str, str]
    arms: tuple[Arm, ...]

    @property
    def is_gpu(self) -> bool:
        """Whether it was made on one."""
        return self.about["device"].startswith("NVIDIA")

    @property
    def source(self) -> str:
        """A sentence on where it comes from."""
        return f"Recorded on one {self.about['device']}, {self.about['date']}."

    def __repr__(self) -> str:
        return "\n".join([self.about["model"], *(f"  {arm.name}" for arm in self.arms)])

    def _repr_html_(self) -> Html:
        heads = ("arm", "ms per decode step", "host work hidden", "kernels in a step")
        made = line(f"{self.about['versions']}; {self.about['date']}")
        return card("Timelines", self.about["model"], made, table(heads, self._rows()))

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        for arm in self.arms:
            hidden = arm.plain.timeline().hidden_share
            last = arm.profiled.steps[-1]
            count = sum(span.step == last for span in arm.profiled.kernels)
            yield arm.name, f"{1e3 * per_step(arm.plain):.2f} ms", f"{hidden:.0%}", f"{count:,}"


def per_step(profile: Profile) -> float:
    """Seconds from the end of one batch to that of the next, where all rows decode: the mean."""
    ends = [
        span.end
        for record in profile.records
        for span in record.spans
        if span.lane == "device" and all(row.token_ids is None for row in record.batch.rows)
    ]
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def read(path: str | Path) -> Recording:
    """What ``record`` wrote. Raises ValueError for another file."""
    try:
        made = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        made = None
    if not isinstance(made, dict) or made.get("format") != _FORMAT:
        raise ValueError(f"{path} holds no timelines; {COMMAND} writes such a file")
    names = made["names"]
    return Recording(
        made["about"],
        tuple(
            Arm(arm["toggles"], _profile(arm["plain"], names), _profile(arm["profiled"], names))
            for arm in made["arms"]
        ),
    )


def stored() -> Recording:
    """The timelines that come with minisgl."""
    return read(STORED)


def record(path: Path) -> Iterator[str]:
    """Run every arm, write the file, and say what happens.

    On a GPU: Qwen3-0.6B's shape, eight requests of 480 tokens; else the embedded model, four
    requests of 32, and no graphs. Raises ValueError for a folder that is not there.
    """
    import torch

    check_writable(path)
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else "CPU"
    device = device if device.startswith("NVIDIA") or not cuda else f"NVIDIA {device}"
    work = equal(0, 8, 480, _DECODES + 1, 10_000) if cuda else equal(0, 4, 32, _DECODES + 1, 200)
    model = "Qwen3-0.6B's shape, random weights" if cuda else "The embedded model"
    about = {
        "device": device,
        "date": str(date.today()),
        "model": f"{model}: {len(work.requests)} requests decode together.",
        "versions": f"torch {torch.__version__}, minisgl {version('minisgl')}",
        "command": COMMAND,
    }
    arms, names = list[Any](), list[str]()
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = _checkpoint(Path(temporary) / "model") if cuda else "tiny"
        for graphs in (True, False) if cuda else (None,):
            for overlap in (True, False):
                toggles = {} if graphs is None else {"cuda_graph": graphs}
                toggles |= {"overlap": overlap}
                arm = _run(checkpoint, work, toggles)
                plain, profiled = _written(arm.plain, names), _written(arm.profiled, names)
                arms.append({"toggles": toggles, "plain": plain, "profiled": profiled})
                yield f"{arm.name}: {1e3 * per_step(arm.plain):.3f} ms per decode step"
    made = {"format": _FORMAT, "about": about, "names": names, "arms": arms}
    write_whole(path, json.dumps(made, separators=(",", ":")) + "\n")
    yield f"written: {path}, {path.stat().st_size:,} bytes"


def _checkpoint(folder: Path) -> Path:
    from minisgl.bench import gpu_shapes

    return gpu_shapes.write("0.6B", folder)


def _run(checkpoint: str | Path, work: Work, toggles: dict[str, bool]) -> Arm:
    """Of three plain and three profiled runs the medians. Before them, graphs are captured and the
    profiler sets itself up. Prompts differ each time: the last ones are in the prefix cache."""
    sizes: dict[str, Any] = dict(num_pages=2048, max_seq_len=1024, threads=1, record=False)
    plain, profiled = list[Profile](), list[Profile]()
    with load(checkpoint, **sizes | toggles) as engine:
        for round_ in range(4):
            _add(engine, work, 2 * round_)
            first = engine.next_step
            records = engine.run()
            plain.append(Profile(tuple(records), range(first, first + len(records)), ()))
            _add(engine, work, 2 * round_ + 1)
            profiled.append(engine.profile(_KEPT))
            engine.run()
    plain, profiled = sorted(plain[1:], key=per_step), sorted(profiled[1:], key=per_step)
    return Arm(toggles, plain[1], profiled[1])


def _add(engine: Engine, work: Work, salt: int) -> None:
    for asked in work.requests:
        prompt = [1 + (token + salt) % 190 for token in asked.prompt]
        engine.add(prompt, SamplingParams(max_tokens=asked.num_tokens, ignore_eos=True))


# ---- the file ------------------------------------------------------------------------------------


def _written(profile: Profile, names: list[str]) -> dict[str, Any]:
    """As plain numbers; texts are places in ``names``, which grows."""
    known = {name: place for place, name in enumerate(names)}
    zero = min(span.start for record in profile.records for span in record.spans)

    def text(name: str) -> int:
        if name not in known:
            known[name] = len(names)
            names.append(name)
        return known[name]

    def ticks(seconds: float) -> int:
        return round(seconds / _TICK)

    def place(span: Span | KernelSpan) -> list[int]:
        start = ticks(span.start - zero)
        return [text(span.lane), text(span.name), start, ticks(span.end - zero) - start]

    return {
        "steps": [profile.steps.start, profile.steps.stop],
        "records": [
            {
                "step": record.batch.step,
                "rows": [
                    [row.rid, row.start, row.length, int(row.token_ids is None)]
                    for row in record.batch.rows
                ],
                "waiting": record.gauges.waiting,
                "running": record.gauges.running,
                "spans": [place(span) for span in record.spans],
            }
            for record in profile.records
        ],
        "kernels": [
            [
                *place(span),
                span.step,
                None if span.launched is None else ticks(span.launched - span.start),
            ]
            for span in profile.spans
        ],
    }


def _profile(made: dict[str, Any], names: Sequence[str]) -> Profile:
    kernels = []
    for lane, name, start, length, step, launched in made["kernels"]:
        call = None if launched is None else (start + launched) * _TICK
        where = (start * _TICK, (start + length) * _TICK)
        kernels.append(KernelSpan(names[lane], names[name], *where, step, call))
    records = tuple(_record(one, names) for one in made["records"])
    return Profile(records, range(*made["steps"]), tuple(kernels))


def _record(made: dict[str, Any], names: Sequence[str]) -> StepRecord:
    """As much of a record as a timeline shows."""
    rows = tuple(
        Row(rid, 0, start, length, None if fed else (0,) * length, 0, (), True, SamplingParams())
        for rid, start, length, fed in made["rows"]
    )
    spans = tuple(
        Span(names[lane], names[name], start * _TICK, (start + length) * _TICK)
        for lane, name, start, length in made["spans"]
    )
    gauges = Gauges(0, 0, 0, 0, made["waiting"], made["running"])
    batch = Batch(made["step"], rows)
    return StepRecord(Plan(), batch, Outcome(batch.step, ()), (), gauges, spans)
