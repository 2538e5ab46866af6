"""How much of the prompts a prefix cache misses, by the size of its pool: a miss-ratio curve.

Counts alone, no times: the scheduler decides what is cached, so its oracle (``runner="hash"``)
gives the numbers of the real model, exactly, in a moment.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Final

from tqdm import tqdm

from minisgl.bench.arms import shown
from minisgl.bench.drive import drive
from minisgl.bench.miss import Miss, prefixes
from minisgl.bench.workload import Workload
from minisgl.build import load
from minisgl.config import EngineConfig
from minisgl.core import as_int
from minisgl.display import Html, card, table
from minisgl.engine.engine import Engine

if TYPE_CHECKING:
    import pandas

    from minisgl.inspector.figures.picture import Picture

_NO_FIGURES: Final = "figures need matplotlib: pip install 'minisgl[lab]'"


@dataclass(frozen=True, repr=False)
class Misses:
    """The points of the curves. ``minisgl.bench.misses.misses`` makes one.

    distinct: positions of prompts that are unlike each other, which whoever asks first computes,
    whatever the cache. twice: those of them that somebody asks for again: the working set.
    """

    workload: Workload
    points: tuple[Miss, ...]
    asked: int
    distinct: int
    twice: int

    @property
    def floor(self) -> float:
        """The part that no prefix cache could have."""
        return self.distinct / self.asked

    @property
    def curves(self) -> dict[str, list[Miss]]:
        """The points of each arm, by size of the pool."""
        found: dict[str, list[Miss]] = {}
        for point in sorted(self.points, key=lambda point: point.pool):
            found.setdefault(point.arm, []).append(point)
        return {arm: found[arm] for arm in dict.fromkeys(point.arm for point in self.points)}

    def to_frame(self) -> pandas.DataFrame:
        """A row for each point, its fields and ``share``. Raises ModuleNotFoundError without pandas
        (the extra [lab]).
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("frames need pandas: pip install 'minisgl[lab]'") from error
        rows = [point._asdict() | {"share": point.share} for point in self.points]
        frame: pandas.DataFrame = pandas.DataFrame(rows)
        return frame

    def plot(self) -> Picture:
        """The curves: the share that is computed over the size of the pool, a line for each arm.

        Raises ModuleNotFoundError without matplotlib (the extra [lab]).
        """
        try:
            from minisgl.bench.miss_curve import curves
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(_NO_FIGURES) from error
        return curves(self.workload.name, self.curves, self.floor, self.twice)

    def plot_parts(self, arm: str | None = None) -> Picture:
        """What all that was asked came to, for one arm, the first by default: found, computed for
        the first time, computed again after eviction, or beyond the last whole page.

        Raises ValueError for an arm that there is not, ModuleNotFoundError without matplotlib.
        """
        known = self.curves
        name = next(iter(known)) if arm is None else arm
        if name not in known:
            raise ValueError(f"no arm {name!r}; there are {'; '.join(known)}")
        try:
            from minisgl.bench.miss_curve import parts
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(_NO_FIGURES) from error
        return parts(name, known[name], self.distinct)

    def __repr__(self) -> str:
        heads, rows = self._table()
        width = max(len(row[0]) for row in rows)
        lines = [" ".join([f"{first:{width}}", *(f"{one:>7}" for one in rest)])
                 for first, *rest in [heads, *rows]]  # fmt: skip
        return "\n".join([*self._words(), *lines])

    def _repr_html_(self) -> Html:
        heads, rows = self._table()
        return card("Misses", " ".join(self._words()), table(heads, rows))

    def _words(self) -> Iterator[str]:
        yield f"{self.workload.name}: {self.asked:,} positions of prompts are asked."
        yield (
            f"{self.distinct:,} of them ({self.floor:.1%}) are new, {self.twice:,} of the new ones "
            f"are asked again. Computed, by positions of the pool:"
        )

    def _table(self) -> tuple[list[str], list[list[str]]]:
        pools = sorted({point.pool for point in self.points})
        rows = []
        for arm, some in self.curves.items():
            by_pool = {point.pool: f"{point.share:.1%}" for point in some}
            rows.append([arm, *(by_pool.get(pool, "") for pool in pools)])
        return ["", *(f"{pool:,}" for pool in pools)], rows


def misses(
    workload: Workload,
    pools: Iterable[int],
    toggles: Mapping[str, Iterable[Any]] | None = None,
    *,
    model: str | PathLike[str] = "tiny",
    base: EngineConfig | None = None,
    progress: bool = False,
) -> Misses:
    """Serve a workload with pools of several sizes, once for each combination of toggles.

    pools: sizes in positions; a pool has as many whole pages as they make.
    toggles: fields of ``EngineConfig`` with the values to try: page_size, policy, ...
    base: all other fields; by default the oracle that computes no model.
    Raises ValueError for a workload that is not ``repeatable``, whose counts would depend on the
    machine, and for a pool that cannot hold one of the requests.
    """
    if not workload.repeatable:
        raise ValueError(
            f"{workload.name} arrives by the clock on the wall, so that no two runs need be alike; "
            f"use workload.arriving(..., clock='steps')"
        )
    sizes = sorted({as_int("a pool", pool, 1) for pool in pools})
    if not sizes:
        raise ValueError("pools has no size to try")
    arms = _arms(base or EngineConfig(runner="hash"), toggles or {})
    points: list[Miss] = []
    prompts: list[Sequence[int]] = []
    with tqdm(total=len(arms) * len(sizes), disable=not progress, unit="run") as bar:
        for (name, config), pool in itertools.product(arms.items(), sizes):
            pages = max(1, pool // config.page_size)
            with load(fspath(model), config.but(num_pages=pages)) as engine:
                drive(engine, workload)
            points.append(_point(name, pool, engine))
            prompts = [r.tokens[: r.prompt_len] for r in engine.requests.values()]
            bar.update()
    counts = prefixes(prompts)
    asked = sum(map(len, prompts))
    return Misses(workload, tuple(points), asked, len(counts), sum(n > 1 for n in counts))


def _arms(base: EngineConfig, toggles: Mapping[str, Iterable[Any]]) -> dict[str, EngineConfig]:
    """Every combination of the toggles' values, by name; the base alone where there are none."""
    found: dict[str, EngineConfig] = {}
    for values in itertools.product(*toggles.values()):
        changes = dict(zip(toggles, values, strict=True))
        name = ", ".join(f"{toggle}={shown(value)}" for toggle, value in changes.items())
        if name in found:
            raise ValueError(f"two arms are called {name}; give the functions names of their own")
        found[name or "base"] = base.but(**changes)
    if not found:
        raise ValueError(f"toggles has no values for {', '.join(toggles)}")
    return found


def _point(arm: str, pool: int, engine: Engine) -> Miss:
    reuse, regret = engine.trace.reuse(), engine.trace.regret()
    asked = reuse.reused + reuse.computed
    return Miss(arm, pool, asked, reuse.computed, regret.tokens, regret.evicted)
