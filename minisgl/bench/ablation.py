"""What an ablation found: its runs, what differs between arms, and a conclusion in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from minisgl.bench.arms import BASE, Arm, shown
from minisgl.bench.drive import METRICS
from minisgl.bench.effects import CONFIDENCE, FEWEST_RUNS, Effect, effect, numbers
from minisgl.bench.journal import Measured
from minisgl.bench.workload import Workload
from minisgl.config import EngineConfig

if TYPE_CHECKING:
    import pandas

    from minisgl.inspector.figures.picture import Picture


class Mismatch(NamedTuple):
    """A run of an arm in which a request generated something else than in the base's first run."""

    arm: str
    replicate: int
    request: int
    position: int  # the first output token that differs


@dataclass(frozen=True, repr=False)
class Ablation:
    """The runs of each arm, the first arm being the base. ``minisgl.ablate`` makes one.

    Its ``repr`` is the conclusion.
    """

    workload: Workload
    model: str
    arms: tuple[Arm, ...]
    repeats: int
    runs: tuple[Measured, ...]  # in the order of turns
    metrics: tuple[str, ...]  # those that are looked at

    @cached_property
    def effects(self) -> tuple[Effect, ...]:
        """Every arm beside the base in every metric that was to be measured in all runs.

        Pages of different sizes are not compared.
        """
        out = []
        for arm in self.arms[1:]:
            for name in self.metrics:
                if name == "peak_pages" and "page_size" in arm.changes:
                    continue
                values, base = self._values(arm.name, name), self._values(BASE, name)
                if values and base:
                    better = METRICS[name].higher_is_better
                    exact = METRICS[name].counts and self.workload.repeatable
                    out.append(
                        effect(arm.name, name, values, base, higher_is_better=better, exact=exact)
                    )
        return tuple(out)

    @property
    def mismatches(self) -> tuple[Mismatch, ...]:
        """Every request of every run whose greedy tokens are not the base's. There should be none:
        a toggle that changes no number a model computes changes no token.
        """
        return tuple(
            Mismatch(run.arm, run.replicate, *difference)
            for run in self.runs
            for difference in run.differences
        )

    @property
    def conclusion(self) -> str:
        """What was found, in one paragraph. A function of the numbers."""
        return " ".join(self._sentences())

    def to_frame(self, kind: Literal["runs", "effects"] = "runs") -> pandas.DataFrame:
        """A pandas frame. runs: a row per run with its metrics. effects: a row per arm and metric
        with the ratio to the base, its interval and the verdict.

        Raises ValueError for another kind, ModuleNotFoundError without pandas (the extra [lab]).
        """
        rows = {"runs": self._run_rows, "effects": self._effect_rows}
        if kind not in rows:
            raise ValueError(f"unknown frame {kind!r}; there are {', '.join(rows)}")
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("frames need pandas: pip install 'minisgl[lab]'") from error
        frame: pandas.DataFrame = pandas.DataFrame(list(rows[kind]()))
        return frame

    def plot(self, *metrics: str) -> Picture:
        """A forest plot: for each metric and arm the ratio to the base, with its interval.

        metrics: which ones, all that were looked at by default. Raises ValueError if there is
        nothing to draw, ModuleNotFoundError without matplotlib (the extra [lab]).
        """
        try:
            from minisgl.bench.forest import forest
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "figures need matplotlib: pip install 'minisgl[lab]'"
            ) from error
        wanted = metrics or self.metrics
        return forest([found for found in self.effects if found.metric in wanted])

    def __repr__(self) -> str:
        return self.conclusion

    def _repr_html_(self) -> str:
        names = [name for name in self.metrics if any(e.metric == name for e in self.effects)]
        head = "".join(f"<th>{escape(name)}</th>" for name in ["", *names])
        found = {(e.arm, e.metric): e for e in self.effects}
        rows = ""
        for arm in self.arms[1:]:
            cells = [found.get((arm.name, name)) for name in names]
            texts = (f"{numbers(e)}<br><b>{e.verdict}</b>" if e else "" for e in cells)
            row = "".join(f"<td>{text}</td>" for text in texts)
            rows += f"<tr><th>{escape(arm.name)}</th>{row}</tr>"
        return f"<p>{escape(self.conclusion)}</p><table><tr>{head}</tr>{rows}</table>"

    # ---- inside ----------------------------------------------------------------------------------

    def _values(self, arm: str, metric: str) -> list[float] | None:
        """By replicate; None if a run has none."""
        runs = sorted((run for run in self.runs if run.arm == arm), key=lambda run: run.replicate)
        values = [run.metrics.get(metric) for run in runs]
        known = [value for value in values if value is not None]
        return known if known and len(known) == len(values) else None

    def _run_rows(self) -> Iterable[dict[str, Any]]:
        for run in self.runs:
            yield {
                "arm": run.arm,
                "replicate": run.replicate,
                **{name: run.metrics.get(name) for name in self.metrics},
                "same_tokens": not run.differences,
            }

    def _effect_rows(self) -> Iterable[dict[str, Any]]:
        for found in self.effects:
            interval = found.interval
            yield {
                "arm": found.arm,
                "metric": found.metric,
                "base": found.base,
                "value": found.value,
                "ratio": interval.ratio if interval else None,
                "low": interval.low if interval else None,
                "high": interval.high if interval else None,
                "verdict": found.verdict,
            }

    def _sentences(self) -> Iterable[str]:
        base = self.arms[0].config
        runs = f"{self.repeats} runs" if self.repeats > 1 else "one run"
        yield (
            f"{self.workload.name} ({len(self.workload)} requests) on {self.model}: {runs} of each "
            f"of {len(self.arms)} arms in turn, against the base {_config(base)}."
        )
        for arm in self.arms[1:]:
            yield self._arm_sentence(arm)
        yield self._tokens_sentence()
        if unstable := [
            name
            for name in self.metrics
            if METRICS[name].counts
            and self.workload.repeatable
            and any(len(set(self._values(arm.name, name) or ())) > 1 for arm in self.arms)
        ]:
            yield (
                f"{_list(unstable)} should be the same in every run of an arm and "
                f"{'is' if len(unstable) == 1 else 'are'} not: something that is not reproducible "
                f"takes part."
            )
        if count := sum(e.interval is not None and not e.exact for e in self.effects):
            one_in = round(1 / (1 - CONFIDENCE))
            yield f"Each of the {count} intervals misses the truth one time in {one_in}."

    def _arm_sentence(self, arm: Arm) -> str:
        effects = [found for found in self.effects if found.arm == arm.name]
        parts = []
        for verdict in ("better", "worse"):
            if some := [e for e in effects if e.verdict == verdict]:
                parts.append(f"{verdict} in {_list([f'{e.metric} ({numbers(e)})' for e in some])}")
        if some := [e for e in effects if e.verdict == "equal"]:
            parts.append(f"equal in {_list([e.metric for e in some])}")
        if some := [e for e in effects if e.verdict == "unclear"]:
            words = _list([f"{e.metric} ({numbers(e)})" for e in some])
            parts.append(f"not to be told from the base in {words}")
        if some := [e for e in effects if e.verdict == "too few runs"]:
            words = _list([e.metric for e in some])
            parts.append(f"not ranked in {words}, for fewer than {FEWEST_RUNS} runs")
        return f"{arm.name} is {'; '.join(parts) or 'not measured'}."

    def _tokens_sentence(self) -> str:
        if not self.mismatches:
            return "All runs generated the same tokens."
        words = []
        for arm in self.arms:
            runs = [run for run in self.runs if run.arm == arm.name and run.differences]
            if runs:
                first = runs[0].differences[0]
                words.append(
                    f"{arm.name} in {len(runs)} of {self.repeats} runs, first request "
                    f"{first.request} from its output token {first.position} on"
                )
        return f"TOKENS DIFFER from the base's first run: {'; '.join(words)}."


def _config(config: EngineConfig) -> str:
    default = EngineConfig()
    changed = [
        f"{name}={shown(getattr(config, name))}"
        for name in EngineConfig.describe()
        if getattr(config, name) != getattr(default, name)
    ]
    return f"({', '.join(changed)})" if changed else "(all defaults)"


def _list(words: Sequence[str]) -> str:
    return " and ".join([*([", ".join(words[:-1])] if words[1:] else []), words[-1]])
