"""Files that a benchmark leaves."""

from __future__ import annotations

import os
from pathlib import Path


def check_writable(path: Path) -> None:
    """Raise ValueError for a folder that is not there, and for a folder or a device that is: now,
    rather than when all is measured.
    """
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot write {path}: it is there and no file; name a file")


def write_whole(path: Path, text: str) -> None:
    """Whole or not at all: who is killed meanwhile leaves the file as it was."""
    path = path.resolve()  # a link stays one
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8", newline="")
    os.replace(part, path)
