"""Finished runs on disk, one JSON line each, so that an interruption loses none of them."""

from __future__ import annotations

import json
import os
import platform
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any, Final, NamedTuple

_FORMAT: Final = 1


class Difference(NamedTuple):
    """A request that generated something else than in the base's first run."""

    request: int
    position: int  # the first output token that differs


class Measured(NamedTuple):
    """One finished run."""

    arm: str
    replicate: int
    metrics: Mapping[str, float | None]
    differences: tuple[Difference, ...] = ()
    tokens: tuple[tuple[int, ...], ...] | None = None  # kept of the base's first run alone


class Journal:
    """The runs of one ablation in one file. The only writer of that file."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Open the file or begin it. about: what is measured, in words; written as its first line.

        A last line that was cut off is forgotten, with a warning; so is a machine that differs.
        Raises ValueError naming file and line for anything else that is no such file.
        """
        self.path = path
        self._runs: dict[tuple[str, int], Measured] = {}
        head = {"format": _FORMAT, **about, "machine": machine()}
        if not path.exists() or not self._read(head):
            self._write(head)

    def get(self, arm: str, replicate: int) -> Measured | None:
        """A finished run."""
        return self._runs.get((arm, replicate))

    def __len__(self) -> int:
        return len(self._runs)

    def append(self, run: Measured) -> None:
        """Note a finished run. When this returns it is on the disk."""
        self._write(run._asdict())
        self._runs[run.arm, run.replicate] = run

    def _write(self, line: Mapping[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, head: Mapping[str, Any]) -> bool:
        """Whether there is anything to go on from."""
        whole = self.path.read_bytes()
        good = whole.rfind(b"\n") + 1
        if good < len(whole):
            warnings.warn(
                f"{self.path}: the last line was cut off and is left out; its run is made again",
                RuntimeWarning,
                stacklevel=5,
            )
            os.truncate(self.path, good)
        for number, line in enumerate(whole[:good].splitlines(), 1):
            try:
                fields = json.loads(line, parse_constant=_no_constant)
                if number == 1:
                    self._check(fields, head)
                    continue
                run = _measured(fields)
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise ValueError(
                    f"{self.path}, line {number}: no run of an ablation ({error!r}); "
                    f"delete the file or name another folder"
                ) from None
            self._runs.setdefault((run.arm, run.replicate), run)
        return good > 0

    def _check(self, found: Mapping[str, Any], head: Mapping[str, Any]) -> None:
        if found["format"] != _FORMAT:
            raise ValueError(f"format {found['format']!r}, this is {_FORMAT}")
        if found["machine"] != head["machine"]:
            warnings.warn(
                f"{self.path} was begun on another machine or version ({found['machine']}; here "
                f"{head['machine']}): its times and new ones do not compare",
                RuntimeWarning,
                stacklevel=6,
            )


def machine() -> str:
    """What times depend on, in one line."""
    packages = f"minisgl {version('minisgl')}, torch {version('torch')}"
    where = f"{platform.platform()}, {os.cpu_count()} cores"
    return f"{packages}, Python {platform.python_version()}, {where}"


def _measured(fields: Mapping[str, Any]) -> Measured:
    metrics = {str(name): _number(value) for name, value in dict(fields["metrics"]).items()}
    differences = tuple(Difference(int(r), int(p)) for r, p in fields["differences"])
    tokens = fields["tokens"]
    if tokens is not None:
        tokens = tuple(tuple(int(token) for token in some) for some in tokens)
    return Measured(str(fields["arm"]), int(fields["replicate"]), metrics, differences, tokens)


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise ValueError(f"{value!r:.40} is no number")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")
