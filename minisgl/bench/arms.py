"""Which configurations an ablation compares, and in what order they take turns."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from hashlib import sha256
from typing import Any, NamedTuple

from minisgl.config import EngineConfig

BASE = "base"


class Arm(NamedTuple):
    """One configuration under comparison: its name, and what it changes in the base."""

    name: str
    changes: Mapping[str, Any]
    config: EngineConfig


def arms(
    base: EngineConfig, toggles: Mapping[str, Iterable[Any]], product: bool = False
) -> list[Arm]:
    """The base, then one arm for each other value of each toggle, or for each combination.

    Where the page size changes alone, the pool keeps its positions.
    Raises TypeError or ValueError for a toggle or value that there is not, or if nothing is left to
    compare.
    """
    if not isinstance(toggles, Mapping):
        raise TypeError(f"toggles maps names to lists of values, got {toggles!r:.60}")
    values = {name: _values(name, given) for name, given in toggles.items()}
    changes: list[dict[str, Any]]
    if product:
        rows = itertools.product(*values.values())
        changes = [dict(zip(values, row, strict=True)) for row in rows]
    else:
        changes = [{name: value} for name, some in values.items() for value in some]
    found = {BASE: Arm(BASE, {}, base)}
    for change in changes:
        config = base.but(**change)
        new = {name: value for name, value in change.items() if getattr(base, name) != value}
        if not new:
            continue
        name = ", ".join(f"{name}={shown(value)}" for name, value in new.items())
        if name in found and found[name].changes != new:
            raise ValueError(f"two arms are called {name}; give the functions names of their own")
        found[name] = Arm(name, new, _same_pool(base, config, new))
    if len(found) == 1:
        raise ValueError("toggles has no value that differs from the base; there is nothing to do")
    return list(found.values())


def turns(arms: Sequence[Arm], repeats: int) -> Iterator[tuple[int, Arm]]:
    """A B C C B A A B C: what drifts with time comes to every arm alike."""
    for replicate in range(repeats):
        for arm in arms if replicate % 2 == 0 else reversed(arms):
            yield replicate, arm


def identity(config: EngineConfig) -> dict[str, str]:
    """A configuration as text, the same in every session. Of a function, its name, its code, and
    the values that it closes over or has as defaults."""
    return {option.name: _identity(getattr(config, option.name)) for option in fields(EngineConfig)}


def shown(value: Any) -> str:
    """A toggle's value in few words."""
    return str(getattr(value, "__name__", value)) if callable(value) else str(value)


def _identity(value: Any) -> str:
    code = getattr(value, "__code__", None)
    if code is None:
        return repr(value) if not callable(value) else f"{value.__module__}.{value.__qualname__}"
    consts = [const for const in code.co_consts if not hasattr(const, "co_code")]
    around = [cell.cell_contents for cell in value.__closure__ or ()]
    given = [*around, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    text = repr((code.co_code, code.co_names, consts, list(map(_identity, given))))
    return f"{value.__qualname__} {sha256(text.encode()).hexdigest()[:16]}"


def _values(name: str, given: Any) -> list[Any]:
    if name not in EngineConfig.describe():
        EngineConfig().but(**{name: None})  # raises TypeError that lists the options
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise TypeError(f"toggles[{name!r}] must be a list of values, got {given!r:.60}")
    values = list(given)
    if not values:
        raise ValueError(f"toggles[{name!r}] has no values")
    return values


def _same_pool(base: EngineConfig, config: EngineConfig, new: Mapping[str, Any]) -> EngineConfig:
    if "page_size" not in new or "num_pages" in new or isinstance(base.num_pages, str):
        return config
    return config.but(num_pages=max(1, base.num_pages * base.page_size // config.page_size))
