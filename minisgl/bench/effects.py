"""What a toggle changes, as a ratio with an interval, and whether that can be told from chance.

The unit is the run: requests of one run share a machine, a moment and each other's batches, so they
say nothing independent. Run k of an arm is paired with run k of the base, which was made beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf, log, sqrt
from statistics import NormalDist
from typing import Final, Literal, NamedTuple

import numpy as np

# With n runs no resampled mean lies outside of the runs themselves, and all of them lie on one side
# of the truth once in 2^(n-1) times: 1 in 16 with five runs, 1 in 32 with six.
FEWEST_RUNS: Final = 6
CONFIDENCE: Final = 0.95
_DRAWS: Final = 10_000

Verdict = Literal["better", "worse", "equal", "unclear", "too few runs"]


class Interval(NamedTuple):
    """A ratio and the bounds between which the true one lies with the confidence asked for."""

    ratio: float
    low: float
    high: float


class Effect(NamedTuple):
    """One arm beside the base, in one metric."""

    arm: str
    metric: str
    base: float  # mean over the runs
    value: float  # likewise
    interval: Interval | None  # None: a value was 0, or one run is all there is of a noisy metric
    verdict: Verdict
    exact: bool  # the numbers are the same in every run: no statistics is needed


def ratio_interval(
    values: Sequence[float], base: Sequence[float], confidence: float = CONFIDENCE
) -> Interval:
    """The geometric mean of ``values[k] / base[k]``, with a bootstrap interval.

    Percentiles of the mean log-ratio over resampled pairs (Efron & Tibshirani 1993, ch. 13), at
    levels widened for few pairs by what a normal interval lacks against Student's (Hesterberg
    2015, "What teachers should know about the bootstrap"). The same for the same numbers.
    All numbers must be above 0; two pairs at least.
    """
    ratios = np.log(np.asarray(values, float)) - np.log(np.asarray(base, float))
    n = len(ratios)
    picks = np.random.default_rng(0).integers(n, size=(_DRAWS, n))
    means = ratios[picks].mean(axis=1)
    tail = NormalDist().cdf(-sqrt(n / (n - 1)) * _student(1 - (1 - confidence) / 2, n - 1))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(exp(ratios.mean()), exp(low), exp(high))


def effect(
    arm: str,
    metric: str,
    values: Sequence[float],
    base: Sequence[float],
    *,
    higher_is_better: bool,
    exact: bool = False,
) -> Effect:
    """One arm's runs beside the base's, pair by pair.

    exact: the metric is a count in which no clock has a part; where it is the same in every run,
    it is compared as it is.
    """
    exact = exact and len({*values}) == len({*base}) == 1
    interval = None
    if min(*values, *base) > 0:
        if exact:
            ratio = values[0] / base[0]
            interval = Interval(ratio, ratio, ratio)
        elif len(values) > 1:
            interval = ratio_interval(values, base)
    if exact or len(values) >= FEWEST_RUNS:
        verdict = _verdict(_direction(values, base, None if exact else interval), higher_is_better)
    else:
        verdict = "too few runs"
    means = sum(base) / len(base), sum(values) / len(values)
    return Effect(arm, metric, *means, interval, verdict, exact)


def numbers(found: Effect) -> str:
    """An effect in numbers: both sides where they are exact, else the ratio with its interval."""
    if found.exact or found.interval is None:
        value, base = (
            f"{x:,.0f}" if float(x).is_integer() else f"{x:,.4g}" for x in (found.value, found.base)
        )
        return f"{value}, base {base}"
    ratio, low, high = found.interval
    return f"x {ratio:.2f}, {low:.2f} to {high:.2f}"


def _direction(
    values: Sequence[float], base: Sequence[float], interval: Interval | None
) -> float | None:
    """Above 0: more than the base; below: less; 0: the same; None: cannot be told.

    Without an interval all pairs must agree, which chance does no more often than it may.
    """
    signs = {(v > b) - (v < b) for v, b in zip(values, base, strict=True)}
    if signs == {0}:
        return 0
    if interval is None:
        return signs.pop() if len(signs) == 1 else None
    if interval.low <= 1 <= interval.high:
        return None
    return log(interval.ratio)


def _verdict(direction: float | None, higher_is_better: bool) -> Verdict:
    if direction is None:
        return "unclear"
    if direction == 0:
        return "equal"
    return "better" if (direction > 0) == higher_is_better else "worse"


def _student(level: float, freedom: int) -> float:
    """A quantile of Student's t, within 0.2 % from three degrees of freedom on; far too wide below.

    Source: Abramowitz & Stegun 1964, 26.7.5.
    """
    if freedom < 3:
        return inf  # an interval as wide as the runs lie apart
    z: float = NormalDist().inv_cdf(level)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / float(freedom) ** k for k, term in enumerate(terms))
