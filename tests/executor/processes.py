"""Looking at processes from outside."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path


def parent_of(pid: int) -> int | None:
    """The process that started it; None once it has ended, even if nobody has buried it."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else int(parent)


def children_of(pid: int) -> set[int]:
    """The processes that it started and that have not ended."""
    everyone = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return {child for child in everyone if parent_of(child) == pid}


def wait_until_ended(pids: Iterable[int], seconds: float = 20.0) -> None:
    """Raise AssertionError if some of the processes go on."""
    deadline, left = time.monotonic() + seconds, set(pids)
    while left := {pid for pid in left if parent_of(pid) is not None}:
        assert time.monotonic() < deadline, f"processes {left} go on; this one is {os.getpid()}"
        time.sleep(0.02)
