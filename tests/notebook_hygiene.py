"""What a notebook must be before it is committed. A pre-commit hook, .ci/run and a test call this.

Command: python tests/notebook_hygiene.py [NOTEBOOK ...], by default every one of the project.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 12  # of a cell, blank and comment lines not counted
MAX_BYTES = 1_000_000
_VIEW = "application/vnd.jupyter.widget"
_IMAGES = ("image/png", "image/jpeg", "image/svg+xml")


def notebooks() -> list[Path]:
    """The project's notebooks."""
    found = [
        path for folder in ("tutorials", "notebooks") for path in (ROOT / folder).rglob("*.ipynb")
    ]
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


def problems(path: Path) -> list[str]:
    """All that is wrong with a notebook, one sentence each."""
    size = path.stat().st_size
    out = [f"holds {size} bytes, at most {MAX_BYTES} are allowed"] if size > MAX_BYTES else []
    try:
        book = json.loads(path.read_text(encoding="utf-8"))
        cells = [dict(cell, source="".join(cell["source"])) for cell in book["cells"]]
    except (ValueError, KeyError, TypeError) as error:
        return [*out, f"is not a notebook of format 4: {error!r}"]
    if "widgets" in book.get("metadata", {}):
        out.append("stores widget state (metadata.widgets); clear it, it cannot be shown again")
    if not cells or cells[0]["cell_type"] != "markdown" or not cells[0]["source"].startswith("# "):
        out.append("does not begin with a Markdown cell that holds its title ('# ...')")
    code = [cell for cell in cells if cell["cell_type"] == "code" and cell["source"].strip()]
    for order, cell in enumerate(code, 1):
        out += [f"code cell {order}: {problem}" for problem in _cell_problems(cell, order)]
    if code and not any(cell["outputs"] for cell in code):
        out.append("shows nothing: run it and save it with its outputs")
    for cell in cells:
        if cell["cell_type"] == "markdown":
            out += [
                f"image without alternative text: {text}" for text in _bare_images(cell["source"])
            ]
    return out


def _cell_problems(cell: dict[str, Any], order: int) -> Iterator[str]:
    if cell["execution_count"] != order:
        ran = cell["execution_count"]
        yield f"was run as number {ran}; restart the kernel, run all cells, save"
    lines = [line for line in cell["source"].splitlines() if line.strip()]
    lines = [line for line in lines if not line.lstrip().startswith("#")]
    if len(lines) > MAX_LINES:
        yield f"has {len(lines)} lines, at most {MAX_LINES}; a long cell is a missing function"
    if cell["source"].rstrip().endswith(";"):
        yield "ends with ';', which nbval does not obey; assign the value instead"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if output["output_type"] == "error" and "raises-exception" not in _tags(cell):
            yield f"stores an error ({output.get('ename')}); fix it or tag it raises-exception"
        if any(kind.startswith(_VIEW) for kind in data):
            yield "stores a widget view; a reader would see 'model not found'"
        if any(kind in data for kind in _IMAGES) and not _described(output):
            yield "shows an image without alternative text"
        for text in _bare_images("".join(data.get("text/html", ""))):
            yield f"shows an image without alternative text: {text}"


def _tags(cell: dict[str, Any]) -> list[str]:
    return list(cell.get("metadata", {}).get("tags", []))


def _described(output: dict[str, Any]) -> bool:
    """Whether a person who does not see the image gets words: ``alt`` metadata, an SVG's own title,
    or a plain text that is more than the object's repr."""
    data = output["data"]
    notes = output.get("metadata", {})  # of the output, and of each kind of its data
    if any(note.get("alt") for note in (notes, *(notes.get(kind, {}) for kind in _IMAGES))):
        return True
    svg = "".join(data.get("image/svg+xml", ""))
    if "<title" in svg or "aria-label" in svg:
        return True
    words = "".join(data.get("text/plain", ""))
    return bool(words) and not words.lstrip().startswith("<")


def _bare_images(text: str) -> list[str]:
    html = re.findall(r"<img\b(?![^>]*\balt=[\"'][^\"'])[^>]*>", text)
    markdown = re.findall(r"!\[\s*\]\([^)]*\)", text)
    svg = [
        tag
        for tag in re.findall(r"<svg\b[^>]*>", text)
        if "aria-" not in tag and "<title" not in text
    ]
    return [tag[:60] for tag in html + markdown + svg]


def main(paths: list[str]) -> int:
    """Print each problem as ``path: sentence``; 1 if there is any, else 0."""
    found = 0
    for path in [Path(name) for name in paths] or notebooks():
        for problem in problems(path):
            print(f"{path}: {problem}")
            found += 1
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
