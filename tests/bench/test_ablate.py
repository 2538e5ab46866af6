"""Ablations: the same work for every arm, in turn; nothing finished is lost or made twice."""

from __future__ import annotations

import json
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minisgl.bench.ablate import ablate
from minisgl.bench.ablation import Ablation
from minisgl.bench.arms import arms, identity
from minisgl.bench.drive import METRICS, Driver, Run, Served, drive
from minisgl.bench.workload import Workload
from minisgl.config import EngineConfig
from minisgl.core import Plan, StepRecord
from minisgl.engine.engine import Engine
from minisgl.engine.prompt import Prompt
from minisgl.scheduler.ledger import Ledger
from minisgl.scheduler.policy import Policy, find_policy, prefill_first

WORK = Workload.synthetic("few_shot", 6, shot_len=20, output_len=(2, 5))
HASH = EngineConfig(runner="hash", num_pages=200)
CACHE: dict[str, list[Any]] = {"prefix_cache": ["radix", "naive"]}
TWO: dict[str, list[Any]] = {"overlap": [True, False], **CACHE}
COUNTS = [name for name, metric in METRICS.items() if metric.counts]


def measure(toggles: dict[str, list[Any]], workload: Workload = WORK, **options: Any) -> Ablation:
    return ablate(workload, base=HASH, toggles=toggles, **({"progress": False} | options))


class Notes:
    """A driver that notes whom it serves, and does something the n-th time."""

    def __init__(self, at: int | None = None, then: Callable[[Engine], None] | None = None) -> None:
        self.arms, self.prompts = list[str](), list[Sequence[Prompt]]()
        self.at, self.then = at, then

    def __call__(self, engine: Engine, workload: Workload, prompts: Sequence[Prompt]) -> Run:
        config = engine.config
        self.arms.append(f"{config.overlap} {config.prefix_cache}")
        self.prompts.append(prompts)
        if self.then is not None and len(self.arms) == self.at:
            self.then(engine)
        return drive(engine, workload, prompts)


def interrupt(engine: Engine) -> None:
    """In the middle of the run, as from the keyboard."""

    def observer(record: StepRecord) -> None:
        if record.batch.step == 3:
            raise KeyboardInterrupt

    engine.observers.append(observer)


def timed(speed: Callable[[Engine], float], noise: float = 0.03) -> Driver:
    """A driver whose times are made up: what the engine generates, at a speed that is known."""
    random = np.random.default_rng(0)

    def driver(engine: Engine, workload: Workload, prompts: Sequence[Prompt]) -> Run:
        run = drive(engine, workload, prompts)
        pace = float(np.exp(random.normal(0, noise))) / speed(engine)
        served = [
            Served(
                0.0, r.prompt_len, r.tokens, tuple(pace * (k + 1) for k in range(len(r.tokens))), 0
            )
            for r in run.requests
        ]
        return replace(run, requests=tuple(served))

    return driver


def counts(result: Ablation) -> dict[str, Any]:
    return {
        f"{run.arm} {run.replicate}": [run.metrics[name] for name in COUNTS] for run in result.runs
    }


# ---- what is measured ----------------------------------------------------------------------------


def test_every_arm_is_warmed_up_and_then_takes_turns() -> None:
    notes = Notes()
    result = measure(TWO, repeats=3, driver=notes)
    base, overlap, naive = "True radix", "False radix", "True naive"
    there, back = [base, overlap, naive], [naive, overlap, base]
    assert notes.arms == there + there + back + there
    names = ["base", "overlap=False", "prefix_cache=naive"]
    assert [run.arm for run in result.runs] == names + names[::-1] + names
    assert all(prompts == notes.prompts[0] for prompts in notes.prompts)


def test_counts_are_those_of_an_engine_that_serves_the_workload_alone() -> None:
    import minisgl

    result = measure(TWO, repeats=2)
    for arm in result.arms:
        with minisgl.load("tiny", arm.config) as engine:
            alone = drive(engine, WORK).metrics
        for run in result.runs:
            if run.arm == arm.name:
                assert [run.metrics[name] for name in COUNTS] == [alone[name] for name in COUNTS]
    by_metric = {(e.arm, e.metric): e for e in result.effects}
    assert by_metric["prefix_cache=naive", "reused"].verdict == "worse"
    assert by_metric["prefix_cache=naive", "reused"].value == 0
    assert by_metric["prefix_cache=naive", "computed"].verdict == "worse"
    assert by_metric["overlap=False", "computed"].verdict == "equal"
    assert by_metric["overlap=False", "ttft"].verdict == "too few runs"


def test_one_toggle_at_a_time_or_every_combination() -> None:
    toggles: dict[str, list[Any]] = {"overlap": [True, False], "page_size": [4, 16, 8]}
    names = [arm.name for arm in arms(HASH, toggles)]
    assert names == ["base", "overlap=False", "page_size=4", "page_size=8"]
    product = arms(HASH, toggles, product=True)
    assert [arm.name for arm in product] == [
        "base",
        "page_size=4",
        "page_size=8",
        "overlap=False, page_size=4",
        "overlap=False",
        "overlap=False, page_size=8",
    ]
    assert [arm.config.num_pages for arm in product] == [200, 800, 400, 800, 200, 400]
    assert arms(EngineConfig(), {"page_size": [4]})[1].config.num_pages == "auto"
    both = arms(HASH, {"page_size": [4], "num_pages": [50]}, product=True)
    assert both[1].config.num_pages == 50


def test_a_function_may_be_a_toggle() -> None:
    def backwards(ledger: Ledger) -> Plan:
        return find_policy("decode_first")(ledger)

    result = measure({"policy": ["prefill_first", backwards]}, repeats=1, metrics=COUNTS)
    assert [arm.name for arm in result.arms] == ["base", "policy=backwards"]
    assert "policy=backwards is" in result.conclusion
    twins: list[Any] = [lambda ledger: find_policy("mixed")(ledger) for _ in range(2)]
    with pytest.raises(ValueError, match="two arms are called policy=<lambda>; give the func"):
        measure({"policy": twins}, repeats=1)


def test_what_is_slower_for_real_is_found() -> None:
    def dawdling(ledger: Ledger) -> Plan:
        time.sleep(0.004)
        return find_policy("prefill_first")(ledger)

    result = measure({"policy": [dawdling]}, workload=WORK)
    verdicts = {e.metric: e.verdict for e in result.effects}
    assert (verdicts["throughput"], verdicts["ttft"], verdicts["tpot"]) == ("worse",) * 3
    assert verdicts["steps"] == verdicts["computed"] == "equal"


def test_a_planted_fifth_is_ranked_and_an_arm_that_is_the_base_is_not() -> None:
    toggles: dict[str, list[Any]] = {"overlap": [False], "seed": [1]}
    speed = timed(lambda engine: 1.0 if engine.config.overlap else 0.8)
    result = measure(toggles, driver=speed)
    found = {(e.arm, e.metric): e for e in result.effects}
    slow = found["overlap=False", "throughput"]
    assert slow.verdict == "worse" and slow.interval is not None
    assert slow.interval.low < 0.8 < slow.interval.high
    assert found["seed=1", "throughput"].verdict == "unclear"
    assert "overlap=False is worse in throughput (x 0." in result.conclusion
    assert re.search(
        r"seed=1 is equal in steps.*not to be told from the base in throughput", result.conclusion
    )


# ---- tokens --------------------------------------------------------------------------------------


def test_an_arm_that_generates_something_else_is_named_loudly() -> None:
    def driver(engine: Engine, workload: Workload, prompts: Sequence[Prompt]) -> Run:
        run = drive(engine, workload, prompts)
        if engine.config.overlap:
            return run
        served = list(run.requests)
        tokens = served[4].tokens
        served[4] = served[4]._replace(tokens=(tokens[0], tokens[1] + 1, *tokens[2:]))
        return replace(run, requests=tuple(served))

    with pytest.warns(
        RuntimeWarning, match="overlap=False, run [01]: 1 of 6 requests gen.* other"
    ) as w:
        result = measure(TWO, repeats=2, driver=driver)
    assert len(w) == 2, "once for each run"
    assert result.mismatches == (("overlap=False", 0, 4, 1), ("overlap=False", 1, 4, 1))
    assert (
        "TOKENS DIFFER from the base's first run: overlap=False in 2 of 2 runs, first request 4 "
        "from its output token 1 on." in result.conclusion
    )
    same = result.to_frame().set_index("arm")["same_tokens"]
    assert not same["overlap=False"].any() and same["base"].all()


def test_the_embedded_model_says_the_same_under_every_toggle() -> None:
    toggles = TWO | {"chunked_prefill": [False], "page_size": [4], "policy": ["mixed"]}
    base = EngineConfig(threads=1)
    result = ablate(WORK, base=base, toggles=toggles, repeats=1, progress=False)
    assert not result.mismatches and "All runs generated the same tokens." in result.conclusion


# ---- interruptions -------------------------------------------------------------------------------


def test_after_an_interruption_only_what_is_missing_is_run(tmp_path: Path) -> None:
    whole = measure(TWO, repeats=3)
    notes = Notes(at=8, then=interrupt)  # three to warm up, four finished
    with pytest.raises(KeyboardInterrupt):
        measure(TWO, repeats=3, folder=tmp_path, driver=notes)
    (file,) = tmp_path.iterdir()
    assert len(file.read_text().splitlines()) == 1 + 4
    notes = Notes()
    result = measure(TWO, repeats=3, folder=tmp_path, driver=notes)
    assert len(notes.arms) == 3 + 5
    assert counts(result) == counts(whole) and not result.mismatches
    notes = Notes()
    again = measure(TWO, repeats=3, folder=tmp_path, driver=notes)
    assert notes.arms == [], "nothing is left to do, not even to warm up"
    assert again == result and again.conclusion == result.conclusion


def test_more_repeats_go_on_and_other_arms_begin_anew(tmp_path: Path) -> None:
    first = measure(CACHE, repeats=1, folder=tmp_path)
    notes = Notes()
    more = measure(CACHE, repeats=2, folder=tmp_path, driver=notes)
    assert len(notes.arms) == 2 + 2 and more.runs[:2] == first.runs
    for workload, toggles in ((WORK, TWO), (Workload(WORK.items[:5]), CACHE)):
        notes = Notes()
        measure(toggles, workload, repeats=1, folder=tmp_path, driver=notes)
        assert len(notes.arms) == 2 * (1 + len(toggles))
    assert len(list(tmp_path.iterdir())) == 3


def test_only_the_arms_that_still_run_are_warmed_up(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure(TWO, repeats=1, folder=tmp_path, driver=Notes(at=6, then=interrupt))
    notes = Notes()
    measure(TWO, repeats=1, folder=tmp_path, driver=notes)
    assert notes.arms == ["True naive"] * 2


def test_without_a_folder_an_interruption_loses_nothing_either() -> None:
    kept = pytest.warns(RuntimeWarning, match="what is finished is kept; go on with folder=")
    with kept as said, pytest.raises(KeyboardInterrupt):
        measure(CACHE, repeats=2, driver=Notes(at=5, then=interrupt))
    found = re.search("folder='(.*)'", str(said[0].message))
    assert found
    notes = Notes()
    measure(CACHE, repeats=2, folder=found[1], driver=notes)
    assert len(notes.arms) == 2 + 2


def test_a_last_line_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    result = measure(CACHE, repeats=2, folder=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    notes = Notes()
    with pytest.warns(RuntimeWarning, match="the last line was cut off and is left out"):
        again = measure(CACHE, repeats=2, folder=tmp_path, driver=notes)
    assert notes.arms == ["True radix"] * 2
    assert counts(again) == counts(result)
    lines = file.read_text().splitlines()
    assert len(lines) == 5 and all(json.loads(line) for line in lines)


def test_a_file_of_which_only_half_a_first_line_is_left_begins_anew(tmp_path: Path) -> None:
    measure(CACHE, repeats=1, folder=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:30])
    with pytest.warns(RuntimeWarning, match="cut off"):
        measure(CACHE, repeats=1, folder=tmp_path)
    assert len(file.read_text().splitlines()) == 3


def test_a_temporary_folder_is_left_only_where_something_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        measure(CACHE, repeats=1, driver=Notes(at=1, then=interrupt))
    measure(CACHE, repeats=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (1, "{}"),
        (1, '{"format": 99}'),
        (2, "<html>"),
        (2, '{"arm": "base"}'),
        (2, '{"arm": "base", "replicate": 0, "metrics": {"ttft": NaN}, "differences": []}'),
        (2, '{"arm": "base", "replicate": 0, "metrics": {"ttft": 1e999}, "differences": []}'),
        (3, '{"arm": "base", "replicate": 0, "metrics": {"ttft": "1"}, "differences": []}'),
        (3, '{"arm": "base", "replicate": 0, "metrics": 3, "differences": 4, "tokens": 1}'),
    ],
)
def test_any_other_damage_is_named(number: int, line: str, tmp_path: Path) -> None:
    measure(CACHE, repeats=1, folder=tmp_path)
    (file,) = tmp_path.iterdir()
    lines = file.read_text().splitlines()
    lines[number - 1] = line
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=rf"\.jsonl, line {number}: no run of an abla.*delete"):
        measure(CACHE, repeats=1, folder=tmp_path)


def test_going_on_on_another_machine_is_warned_of(tmp_path: Path) -> None:
    measure(CACHE, repeats=1, folder=tmp_path)
    (file,) = tmp_path.iterdir()
    head, *rest = file.read_text().splitlines()
    head = json.dumps(json.loads(head) | {"machine": "a slate"})
    file.write_text("\n".join([head, *rest]) + "\n")
    with pytest.warns(RuntimeWarning, match="begun on another machine or version .a slate; here"):
        measure(CACHE, repeats=1, folder=tmp_path)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toggles", "error", "message"),
    [
        ({}, ValueError, "nothing to do"),
        ({"overlap": [True]}, ValueError, "no value that differs from the base"),
        ({"overlap": []}, ValueError, r"toggles\['overlap'\] has no values"),
        ({"overlap": False}, TypeError, r"toggles\['overlap'\] must be a list of values"),
        ({"policy": "mixed"}, TypeError, "must be a list of values, got 'mixed'"),
        ({"speed": [1]}, TypeError, "no such option: speed; there are overlap, prefix_cache"),
        ({"overlap": [1]}, TypeError, "overlap must be True or False"),
        ({"policy": ["fifo"]}, ValueError, "policy must be one of"),
        (["overlap"], TypeError, "toggles maps names to lists of values"),
    ],
)
def test_toggles_that_cannot_be_compared_are_refused(
    toggles: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        measure(toggles)


def test_other_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown metric 'speed'; there are throughput, ttft"):
        measure(CACHE, metrics=["speed"])
    with pytest.raises(ValueError, match="name at least one metric"):
        measure(CACHE, metrics=[])
    with pytest.raises(ValueError, match="repeats must be at least 1"):
        measure(CACHE, repeats=0)
    with pytest.raises(TypeError, match="a Workload is measured, got 'text'"):
        ablate("text", toggles=CACHE)  # type: ignore[arg-type]


def test_an_arm_that_cannot_serve_the_work_says_so_before_anything_counts(tmp_path: Path) -> None:
    notes = Notes()
    with pytest.raises(ValueError, match="request"):
        measure({"num_pages": [5]}, folder=tmp_path, driver=notes)
    assert len(notes.arms) == 2, "the base's warm-up and its own"


def test_what_the_environment_overrules_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINISGL_DISABLE_OVERLAP_SCHEDULING", "1")
    base = HASH.but(overlap=False)
    with pytest.raises(ValueError, match="overlap=True was asked, the engine runs overlap=False"):
        ablate(WORK, base=base, toggles={"overlap": [True]}, repeats=1, progress=False)


# ---- what is shown -------------------------------------------------------------------------------


def exactly() -> Ablation:
    return measure(TWO, repeats=1, metrics=["steps", "computed", "reused"])


def test_counts_alone_make_a_conclusion_that_is_the_same_everywhere() -> None:
    result = exactly()
    assert repr(result) == result.conclusion == exactly().conclusion
    assert result.conclusion == (
        "few_shot (6 requests) on tiny: one run of each of 3 arms in turn, against the base "
        "(num_pages=200, runner=hash). overlap=False is equal in steps, computed and reused. "
        "prefix_cache=naive is better in steps (4, base 7); worse in computed (491, base 267) and "
        "reused (0, base 224). All runs generated the same tokens."
    )


def test_counts_that_should_not_vary_and_do_are_spoken_of() -> None:
    random = np.random.default_rng(0)

    def driver(engine: Engine, workload: Workload, prompts: Sequence[Prompt]) -> Run:
        run = drive(engine, workload, prompts)
        return replace(run, steps=run.steps + int(random.integers(1000)))

    said = measure(CACHE, repeats=2, driver=driver).conclusion
    assert "steps should be the same in every run of an arm and is not" in said
    arriving = WORK.arriving("poisson", rate=1e6)
    assert "should be the same" not in measure(CACHE, arriving, repeats=2, driver=driver).conclusion


def test_frames_have_a_row_per_run_and_per_effect() -> None:
    result = measure(TWO, repeats=2)
    runs, effects = result.to_frame(), result.to_frame("effects")
    assert list(runs.columns) == ["arm", "replicate", *METRICS, "same_tokens"]
    assert len(runs) == 6 and runs["same_tokens"].all()
    assert len(effects) == 2 * len(METRICS)
    for row, found in zip(effects.itertuples(), result.effects, strict=True):
        assert (row.arm, row.metric, row.verdict) == (found.arm, found.metric, found.verdict)
    mean = runs.groupby("arm")["computed"].mean()
    row = effects.set_index(["arm", "metric"]).loc[("prefix_cache=naive", "computed")]
    assert row["base"] == mean["base"] and row["value"] == mean["prefix_cache=naive"]
    assert row["ratio"] == pytest.approx(mean["prefix_cache=naive"] / mean["base"])
    with pytest.raises(ValueError, match="unknown frame 'tidy'; there are runs, effects"):
        result.to_frame("tidy")  # type: ignore[arg-type]


def test_the_forest_plot_shows_the_effects() -> None:
    result = measure({"overlap": [False]}, driver=timed(lambda e: 1 + e.config.overlap), repeats=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = result.plot()
        picture.draw_without_rendering()
    (ax,) = picture.axes
    drawn = [list(np.atleast_1d(np.asarray(line.get_xdata()))) for line in ax.get_lines()]
    order = sorted(result.effects, key=lambda found: list(METRICS).index(found.metric))
    wanted = [found.interval for found in order if found.interval is not None]
    assert drawn[:-1] == [x for ratio, low, high in wanted for x in ([low, high], [ratio])]
    assert drawn[-1] == [1, 1], "the base"
    for found in result.effects:
        assert f"{found.metric}, {found.arm}: " in picture.alt
    assert "throughput, overlap=False: x 0.5" in picture.alt
    assert result.plot("ttft").alt.startswith("ttft, overlap=False")
    with pytest.raises(ValueError, match="no effect to draw"):
        result.plot("speed")


def test_pages_of_different_sizes_are_not_compared() -> None:
    result = measure({"page_size": [4]}, repeats=1, metrics=["computed", "peak_pages"])
    assert [found.metric for found in result.effects] == ["computed"]
    assert result.runs[1].metrics["peak_pages"] != result.runs[0].metrics["peak_pages"]


def test_html_is_escaped() -> None:
    workload = replace(WORK, name="<script>alert(1)</script>")
    html = measure(CACHE, workload, repeats=1)._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert "prefix_cache=naive" in html and "<b>worse</b>" in html


def test_progress_is_shown_where_asked(capfd: pytest.CaptureFixture[str]) -> None:
    measure(CACHE, repeats=1)
    assert capfd.readouterr().err == ""
    measure(CACHE, repeats=1, progress=True)
    assert "4/4" in capfd.readouterr().err


def test_policies_of_one_factory_are_told_apart() -> None:
    def made(limit: int) -> Policy:
        def policy(ledger: Ledger, most: int = 2 * limit) -> Plan:
            return prefill_first(ledger) if ledger.tokens_left > limit * most else Plan()

        return policy

    names = [identity(EngineConfig(policy=made(limit)))["policy"] for limit in (1, 1, 2)]
    assert names[0] == names[1] != names[2]
