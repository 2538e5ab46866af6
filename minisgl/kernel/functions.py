"""The C++ functions of this process: one table that everybody calls them through.

So they can be watched: they are no operators of torch, and its profiler would not see them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

from minisgl.kernel.compile import load


class Functions:
    """What ``csrc/cpu.cpp`` exports. Raises kernel.compile.NoKernels."""

    def __init__(self) -> None:
        module = load()
        self.panel: Any = module["panel"]
        self.linear: Any = module["linear"]
        self.linear_int4: Any = module["linear_int4"]
        self.rms_norm: Any = module["rms_norm"]
        self.silu_and_mul: Any = module["silu_and_mul"]
        self.turn_and_store: Any = module["turn_and_store"]
        self.attend: Any = module["attend"]
        for short in (self.rms_norm, self.silu_and_mul, self.turn_and_store):
            short.release_gil = False  # over before another thread could use it


@cache
def functions() -> Functions:
    """The table, made at the first use. Raises kernel.compile.NoKernels."""
    return Functions()


@contextmanager
def marked(mark: Callable[[str], AbstractContextManager[Any]]) -> Iterator[None]:
    """While this lasts, every function runs in ``mark("native::" + its name)``."""
    if not functions.cache_info().currsize:
        yield
        return
    table = vars(functions())
    plain = dict(table)
    table |= {name: _within(mark, f"native::{name}", call) for name, call in plain.items()}
    try:
        yield
    finally:
        table |= plain


def _within(
    mark: Callable[[str], AbstractContextManager[Any]], name: str, call: Callable[..., Any]
) -> Callable[..., Any]:
    def within(*given: Any) -> Any:
        with mark(name):
            return call(*given)

    return within
