"""The statistics against known truth: samples whose ratio was put there."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisgl.bench.effects import (
    FEWEST_RUNS,
    Effect,
    _student,
    effect,
    numbers,
    ratio_interval,
)

TRIALS = 400
Floats = list[float]


def pairs(
    random: np.random.Generator, ratio: float, runs: int, noise: float
) -> tuple[Floats, Floats]:
    """An arm and its base on a machine whose speed drifts: what both suffer cancels in pairs."""
    drift = np.cumsum(random.normal(0, 0.2, runs))
    base = 10 * np.exp(drift + random.normal(0, noise, runs))
    arm = 10 * ratio * np.exp(drift + random.normal(0, noise, runs))
    return list(map(float, arm)), list(map(float, base))


@pytest.mark.parametrize("runs", [FEWEST_RUNS, 12])
@pytest.mark.parametrize("ratio", [1.0, 0.8])
def test_the_interval_holds_the_truth_as_often_as_it_says(runs: int, ratio: float) -> None:
    random = np.random.default_rng(runs)
    held = 0
    for _ in range(TRIALS):
        interval = ratio_interval(*pairs(random, ratio, runs, 0.05))
        held += interval.low <= ratio <= interval.high
    assert 0.91 <= held / TRIALS <= 0.98


def test_five_runs_would_be_too_few_and_six_are_not() -> None:
    """No resampled mean lies outside of the runs, so chance alone sets a limit."""
    assert 0.5 ** (FEWEST_RUNS - 1) < 0.05 <= 0.5 ** (FEWEST_RUNS - 2)


def test_an_arm_that_is_the_base_is_seldom_ranked() -> None:
    random = np.random.default_rng(3)
    ranked = 0
    for _ in range(TRIALS):
        found = effect("a", "ttft", *pairs(random, 1.0, 6, 0.05), higher_is_better=False)
        ranked += found.verdict != "unclear"
    assert 0.01 < ranked / TRIALS < 0.09


@pytest.mark.parametrize("ratio", [0.8, 1 / 0.8])
def test_a_fifth_is_found_and_its_side_told(ratio: float) -> None:
    random = np.random.default_rng(4)
    for higher_is_better in (True, False):
        good = (ratio > 1) == higher_is_better
        verdicts = [
            effect("a", "m", *pairs(random, ratio, 6, 0.05), higher_is_better=higher_is_better)
            for _ in range(100)
        ]
        told = [found.verdict for found in verdicts]
        assert told.count("better" if good else "worse") >= 95
        assert told.count("worse" if good else "better") == 0


def test_pairing_takes_out_what_both_arms_suffer() -> None:
    random = np.random.default_rng(5)
    arm, base = pairs(random, 0.8, 8, 0.02)
    paired = ratio_interval(arm, base)
    torn = ratio_interval(arm, base[::-1])
    assert paired.high - paired.low < (torn.high - torn.low) / 3


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=2, max_size=9),
    st.floats(0.01, 100),
)
def test_an_interval_surrounds_its_ratio_within_the_runs_and_knows_no_unit(
    runs: list[tuple[float, float]], unit: float
) -> None:
    values, base = map(list, zip(*runs, strict=True))
    ratio, low, high = ratio_interval(values, base)
    logs = [log(v / b) for v, b in runs]
    assert ratio == pytest.approx(exp(sum(logs) / len(logs)))
    slack = 1 + 1e-9
    assert exp(min(logs)) / slack <= low <= high <= exp(max(logs)) * slack
    assert low <= ratio * slack and ratio <= high * slack
    scaled = ratio_interval([v * unit for v in values], base)
    assert scaled == pytest.approx((ratio * unit, low * unit, high * unit))
    assert ratio_interval(values, base) == (ratio, low, high), "the same every time"
    over = ratio_interval(base, values)
    assert over.ratio == pytest.approx(1 / ratio)


def test_with_more_confidence_it_is_wider() -> None:
    arm, base = pairs(np.random.default_rng(6), 1.0, 10, 0.05)
    wide, narrow = ratio_interval(arm, base, 0.99), ratio_interval(arm, base, 0.8)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_students_quantiles_are_those_of_the_tables() -> None:
    table = {3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 30: 2.042}
    assert {n: _student(0.975, n) for n in table} == pytest.approx(table, rel=2e-3)


def of(values: Floats, base: Floats, exact: bool = False, more: bool = True) -> Effect:
    return effect("a", "m", values, base, higher_is_better=more, exact=exact)


def test_too_few_runs_are_not_ranked_however_far_apart() -> None:
    found = of([20.0] * 5, [10.0, 10.1, 9.9, 10.0, 10.0])
    assert found.verdict == "too few runs" and found.interval is not None
    assert of([20.0], [10.0]).interval is None
    assert of([20.0] * 6, [10.0, 10.1, 9.9, 10.0, 10.0, 10.0]).verdict == "better"


def test_exact_counts_need_one_run() -> None:
    assert of([37], [32], exact=True, more=False).verdict == "worse"
    assert of([32], [37], exact=True, more=False).verdict == "better"
    assert of([32], [32], exact=True).verdict == "equal"
    assert of([0], [2560], exact=True).verdict == "worse"
    assert of([0], [2560], exact=True).interval is None
    assert of([0, 0], [0, 0], exact=True).verdict == "equal"
    assert numbers(of([1710], [4270], exact=True)) == "1,710, base 4,270"


def test_counts_that_vary_are_no_longer_exact() -> None:
    found = of([37, 38], [32, 32], exact=True)
    assert not found.exact and found.verdict == "too few runs"


def test_where_there_is_no_ratio_all_pairs_must_agree() -> None:
    some = [5.0, 9.0, 3.0, 4.0, 8.0, 2.0]
    assert of([0.0] * 6, some).verdict == "worse"
    assert of([0.0, *some[1:]], some).verdict == "unclear"
    assert of([0.0] * 5, some[:5]).verdict == "too few runs"
    assert of([0.0] * 6, [0.0] * 6).verdict == "equal"
    assert numbers(of([0.0] * 6, some)) == "0, base 5.167"


def test_runs_that_are_the_same_are_equal() -> None:
    some = [5.0, 9.0, 3.0, 4.0, 8.0, 2.0]
    assert of(some, some).verdict == "equal"
    assert numbers(of(some, some)) == "x 1.00, 1.00 to 1.00"
