"""When requests come: at once, so many at a time, at random, or as recorded."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, log
from random import Random
from typing import Literal

from minisgl.bench.item import Item
from minisgl.core import as_int

Arrivals = Literal["at_once", "closed", "poisson", "recorded"]

_TAKES: dict[Arrivals, tuple[str, ...]] = {
    "at_once": (),
    "closed": ("concurrency",),
    "poisson": ("rate",),
    "recorded": ("rate", "speed"),
}


def arrival_times(
    items: Sequence[Item],
    arrivals: Arrivals,
    *,
    rate: float | None,
    speed: float | None,
    concurrency: int | None,
    seed: int,
) -> list[float]:
    """When each item comes. The numbers' meaning is that of ``Workload.arriving``.

    Raises TypeError for a number that is missing or does not belong there, ValueError for one that
    cannot be.
    """
    numbers = {"rate": rate, "speed": speed, "concurrency": concurrency}
    given = {name: number for name, number in numbers.items() if number is not None}
    if arrivals not in _TAKES:
        raise ValueError(f"unknown arrivals {arrivals!r}; there are {', '.join(_TAKES)}")
    if wrong := sorted(set(given) - set(_TAKES[arrivals])):
        raise TypeError(f"{wrong[0]} does not go with arrivals={arrivals!r}")
    if arrivals in ("closed", "poisson") and not given:
        raise TypeError(f"arrivals={arrivals!r} needs {_TAKES[arrivals][0]}")
    if len(given) == 2:
        raise TypeError("give a rate or a speed, not both")
    for name in given.keys() - {"concurrency"}:
        _check_positive(name, given[name])
    times = [float(item.arrival) for item in items]
    if arrivals == "poisson" and rate is not None:
        return _drawn(items, rate, as_int("seed", seed, 0))
    if arrivals == "recorded":
        return _paced(times, rate, speed)
    return [0.0] * len(times)


def _drawn(items: Sequence[Item], rate: float, seed: int) -> list[float]:
    """A Poisson process whose first arrival is at 0. Who waits for another's end has no draw."""
    random, time, out = Random(f"poisson {seed}"), 0.0, list[float]()
    for item in items:
        if item.after is not None:
            out.append(0.0)
            continue
        out.append(time)
        time -= log(1 - random.random()) / rate
    return out


def _paced(times: Sequence[float], rate: float | None, speed: float | None) -> list[float]:
    if rate is not None:
        took = max(times) - min(times)
        if not took:
            raise ValueError("these requests have no times of their own, so no rate; use poisson")
        speed = rate * took / (len(times) - 1)
    return [time / (speed or 1.0) for time in times]


def _check_positive(name: str, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{name} must be a number, got {number!r}")
    if not (isfinite(number) and number > 0):
        raise ValueError(f"{name} must be above 0 and finite, got {number}")
