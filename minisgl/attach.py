"""``minisgl.attach``: the inspector on a server that runs elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minisgl.inspector.served import Served
from minisgl.inspector.show import inspect
from minisgl.registry import names

if TYPE_CHECKING:
    from minisgl.inspector.widget import Inspector


def attach(url: str, admin_key: str | None = None, api_key: str | None = None) -> Inspector:
    """Watch a running server, step by step, from now on; put it on the last line of a cell.

    Without the admin key of the server what was said is left out, and nothing can be ordered; with
    it the engine can be paused, stepped and resumed. api_key: what clients of the server must send.
    ``attach(...).trace`` is the run so far, to be explained, plotted, saved. However slow this end
    is, the server does not wait for it.
    Raises ConnectionError where no server answers, PermissionError where it does not let us in.
    """
    return inspect(Served(url, admin_key, api_key, _decoder))


def _decoder(model: str) -> Callable[[Sequence[int]], str] | None:
    """What turns this model's ids into text, if its tokenizer is on this machine, too. Nothing is
    downloaded because a server says a name.
    """
    if model not in names("embedded") and not Path(model).is_dir():
        return None
    from minisgl.models.hub import locate
    from minisgl.tokenizer import load_codec

    try:
        codec = load_codec(locate(model))
    except (OSError, ValueError):
        return None
    return codec.decode if codec else None
