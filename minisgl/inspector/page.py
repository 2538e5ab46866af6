"""The inspector as one HTML file, which opens from disk and never asks a network for anything."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any, Final

from minisgl.inspector.film import Film
from minisgl.inspector.run import CONDITIONS
from minisgl.trace.trace import Trace

_HERE: Final = Path(__file__).parent
# Nothing may be fetched, framed, submitted or sent; what is shown is in the file.
_POLICY: Final = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"

_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<main id="inspector"></main>
<noscript>This page draws a recorded run with JavaScript, all of which is in the file.</noscript>
<script type="module">
{script}
mountPage(document.getElementById("inspector"), {data});
</script>
</body>
</html>
"""


def save_html(
    runs: Sequence[tuple[str, Trace]],
    path: str | PathLike[str],
    divergence: Mapping[str, Any] | None = None,
    redact: bool = False,
) -> None:
    """Write ``page`` to a file."""
    Path(path).write_text(page(runs, divergence, redact), encoding="utf-8")


def page(
    runs: Sequence[tuple[str, Trace]],
    divergence: Mapping[str, Any] | None = None,
    redact: bool = False,
) -> str:
    """One page for one run, or for two over one another with the step where they part.

    divergence: {"step", "words"}. redact: leave all text and token ids out.
    """
    films = [zlib.compress(Film(trace, redact).read(), 9) for _, trace in runs]
    status: dict[str, Any] = {
        "mode": "page",
        "runs": [
            {"name": name, "live": False, "closed": False, "plan": None, "breakpoints": []}
            for name, _ in runs
        ],
        "conditions": list(CONDITIONS),
        "forkable": {},
        "divergence": divergence,
        "message": "",
    }
    data = {"films": [base64.b64encode(film).decode() for film in films], "status": status}
    # "<" is left out of the script, so that no text of the run can end it
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return _PAGE.format(
        policy=_POLICY,
        title=escape(f"minisgl: {len(runs[0][1])} steps of {runs[0][1].model}"),
        style=(_HERE / "inspector.css").read_text(encoding="utf-8"),
        script=(_HERE / "inspector.js").read_text(encoding="utf-8"),
        data=text,
    )
