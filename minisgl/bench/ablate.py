"""The same work under one changed toggle after the other, so that the change can be told from
chance.
"""

from __future__ import annotations

import gc
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minisgl.bench.ablation import Ablation
from minisgl.bench.arms import BASE, Arm, arms, identity, turns
from minisgl.bench.drive import METRICS, Driver, Run, drive
from minisgl.bench.effects import FEWEST_RUNS
from minisgl.bench.journal import Difference, Journal, Measured
from minisgl.bench.workload import Workload
from minisgl.build import load
from minisgl.config import EngineConfig
from minisgl.core import as_int
from minisgl.engine.engine import Engine
from minisgl.engine.prompt import Prompt


def ablate(
    workload: Workload,
    model: str | PathLike[str] = "tiny",
    base: EngineConfig | None = None,
    *,
    toggles: Mapping[str, Iterable[Any]],
    repeats: int = FEWEST_RUNS,
    folder: str | PathLike[str] | None = None,
    progress: bool = True,
    product: bool = False,
    metrics: Sequence[str] = tuple(METRICS),
    driver: Driver = drive,
) -> Ablation:
    """Measure what each toggle changes: every arm serves the same requests with the same lengths.

    toggles: fields of ``EngineConfig`` with the values to try. Each value that differs from the
    base's makes an arm of its own; with ``product`` each combination does.
    repeats: runs of each arm. Arms take turns, A B C C B A, after a run of each that does not
    count. A run has an engine of its own, so its cache is empty at the start; loading it takes no
    part in the times.
    folder: where finished runs are kept, one line each. Interrupted, call again with the same
    arguments, or with more repeats: what is finished is not run again. Without a folder a
    temporary one is used and left, with a warning that names it, if an interruption comes.
    metrics: those of ``METRICS`` to look at; all are measured. Counts of a workload that is
    ``repeatable`` are exact and need one run; times need six to be ranked.
    driver: what serves a workload on an engine and measures it.

    That every arm generates the same greedy tokens is checked in each run; where one does not, a
    RuntimeWarning and the conclusion name arm, request and position.
    A pool that is sized by free memory (num_pages="auto" with a large model) is not the same in
    every run: set it.
    Raises TypeError or ValueError for a toggle, value or metric that there is not, ValueError for a
    request that an arm cannot serve whole: the run that does not count finds out.
    """
    if not isinstance(workload, Workload):
        raise TypeError(f"a Workload is measured, got {workload!r:.60}")
    if wrong := [name for name in metrics if name not in METRICS]:
        raise ValueError(f"unknown metric {wrong[0]!r}; there are {', '.join(METRICS)}")
    if not metrics:
        raise ValueError("name at least one metric")
    repeats = as_int("repeats", repeats, 1)
    every = arms(base or EngineConfig(), toggles, product)
    asked = {
        "workload": workload.digest,
        "model": fspath(model),
        "arms": {arm.name: identity(arm.config) for arm in every},
    }
    key = sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
    place = Path(tempfile.mkdtemp(prefix="minisgl-ablate-") if folder is None else folder)
    place.mkdir(parents=True, exist_ok=True)
    about = {"workload": workload.describe(), "model": asked["model"], "arms": asked["arms"]}
    journal = Journal(place / f"ablation-{key}.jsonl", about)
    try:
        study = _Study(workload, fspath(model), every, journal, driver)
        with _quiet_collector():
            study.run(repeats, progress)
    except BaseException:
        if folder is None and not len(journal):
            shutil.rmtree(place)
        elif folder is None:
            warnings.warn(
                f"what is finished is kept; go on with folder={str(place)!r}",
                RuntimeWarning,
                stacklevel=2,
            )
        raise
    runs = [journal.get(arm.name, replicate) for replicate, arm in turns(every, repeats)]
    if folder is None:
        shutil.rmtree(place)
    done = tuple(run._replace(tokens=None) for run in runs if run is not None)
    return Ablation(workload, fspath(model), tuple(every), repeats, done, tuple(metrics))


@contextmanager
def _quiet_collector() -> Iterator[None]:
    """What is there already is no garbage: looking through it may take longer than a run."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Study:
    """The runs that are still to be made."""

    def __init__(
        self,
        workload: Workload,
        model: str,
        arms: Sequence[Arm],
        journal: Journal,
        driver: Driver,
    ) -> None:
        self.workload, self.model, self.arms = workload, model, arms
        self.journal, self.driver = journal, driver
        self.prompts: Sequence[Prompt] | None = None  # the same for all arms

    def run(self, repeats: int, progress: bool) -> None:
        todo = [
            (replicate, arm)
            for replicate, arm in turns(self.arms, repeats)
            if self.journal.get(arm.name, replicate) is None
        ]
        cold = [arm for arm in self.arms if any(arm is other for _, other in todo)]
        with tqdm(total=len(cold) + len(todo), disable=not progress, unit="run") as bar:
            for arm in cold:
                bar.set_description(f"{arm.name}, to warm up")
                self._run(arm)
                bar.update()
            for replicate, arm in todo:
                bar.set_description(arm.name)
                run = self._run(arm)
                self.journal.append(self._measured(replicate, arm, run))
                bar.update()

    def _run(self, arm: Arm) -> Run:
        with load(self.model, arm.config) as engine:
            _check_toggles(engine, arm)
            if self.prompts is None:
                self.prompts = self.workload.prompts(engine)
            gc.collect()  # now, rather than in the middle of what is measured
            return self.driver(engine, self.workload, self.prompts)

    def _measured(self, replicate: int, arm: Arm, run: Run) -> Measured:
        first = self.journal.get(BASE, 0)
        if first is None or first.tokens is None:
            return Measured(arm.name, replicate, run.metrics, (), run.tokens)
        differences = tuple(_differences(first.tokens, run.tokens))
        if differences:
            request, position = differences[0]
            warnings.warn(
                f"{arm.name}, run {replicate}: {len(differences)} of {len(run.tokens)} requests "
                f"generated other tokens than the base, first request {request} at its output "
                f"token {position}",
                RuntimeWarning,
                stacklevel=4,
            )
        return Measured(arm.name, replicate, run.metrics, differences)


def _differences(
    expected: Sequence[Sequence[int]], found: Sequence[Sequence[int]]
) -> Iterable[Difference]:
    for request, (a, b) in enumerate(zip(expected, found, strict=True)):
        if a != b:
            pairs = enumerate(zip(a, b, strict=True))
            yield Difference(request, next(k for k, (x, y) in pairs if x != y))


def _check_toggles(engine: Engine, arm: Arm) -> None:
    """What was asked for must be what runs: the environment or the model may have a say, too."""
    for name, asked in arm.changes.items():
        runs = getattr(engine.config, name)
        if asked != "auto" and runs != asked:
            raise ValueError(
                f"{name}={asked!r} was asked, the engine runs {name}={runs!r}; "
                f"leave that value out of the toggles"
            )
