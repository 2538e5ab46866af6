"""``minisgl.inspect``: the widget, or a sentence that says what it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minisgl.engine.engine import Engine
from minisgl.inspector.run import Inspected
from minisgl.inspector.served import Served
from minisgl.trace.trace import Trace

if TYPE_CHECKING:
    from minisgl.inspector.widget import Inspector


def inspect(what: Inspected) -> Inspector:
    """The inspector on a live engine, or on a trace: put it on the last line of a notebook's cell.

    An engine that is stepped elsewhere is followed; the widget can step, fork and rewind it.
    Raises TypeError for anything else, ModuleNotFoundError without anywidget (the extra [lab]).
    """
    if not isinstance(what, Engine | Trace | Served):
        raise TypeError(f"inspect takes an engine or a trace, got {what!r:.80}")
    return _widget([(what.url if isinstance(what, Served) else "run", what)])


def inspect_both(a: Inspected, b: Inspected, divergence: Mapping[str, Any] | None) -> Inspector:
    """Two runs over one another; divergence: {"step", "words"} where they part, or None."""
    return _widget([("a", a), ("b", b)], divergence)


def _widget(
    runs: list[tuple[str, Inspected]], divergence: Mapping[str, Any] | None = None
) -> Inspector:
    try:
        from minisgl.inspector.widget import Inspector
    except ModuleNotFoundError as error:
        if error.name not in ("anywidget", "traitlets", "ipywidgets"):
            raise
        raise ModuleNotFoundError(
            f"the inspector needs {error.name}: pip install 'minisgl[lab]'; without it, "
            f"trace.save_html(path) writes the same view as a page"
        ) from error
    return Inspector(runs, divergence)
