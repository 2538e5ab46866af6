"""A run as a file: JSON lines, a versioned header and then every input, which rebuild the records.

Nothing in a file is executed or unpickled. Its inputs pass the same doors as a user's, so a file
that contradicts itself is refused at the line where it does.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, Final, NamedTuple

from minisgl.config import EngineConfig
from minisgl.core import Abort, Add, Change, Input, Outcome, Plan, Span
from minisgl.scheduler.scheduler import Scheduler
from minisgl.scheduler.state import sampling_out
from minisgl.trace.history import History
from minisgl.trace.rebuild import Rebuild, number

FORMAT: Final = "minisgl-trace"
VERSION: Final = 1
# A file may not ask for more host memory than this. The largest pools that we know of have a tenth
# of these pages, the longest prompts a tenth of this line.
_MOST: Final = {"num_pages": 4_000_000, "max_running": 10_000}
_LINE: Final = 16 << 20  # bytes


class Header(NamedTuple):
    """What a run was made with."""

    config: EngineConfig  # resolved
    eos: frozenset[int]
    vocab_size: int
    model: str  # as it was asked for: "tiny", a folder, a Hugging Face id
    origin: EngineConfig  # what the history began with: a fork has another config since


def save(path: str | PathLike[str], header: Header, history: History) -> None:
    """Write a history that was kept from its beginning."""
    with Path(path).open("w", encoding="utf-8") as out:
        out.write(text(header_line(header)))
        for item in history.inputs(0, history.num_inputs):
            spans: Sequence[Span] = ()
            if isinstance(item, Outcome):
                known = item.step < len(history)
                spans = history.record(item.step).spans if known else item.spans
            out.write(text(line_of(item, spans)))


def load(path: str | PathLike[str]) -> tuple[Header, History, Scheduler | None]:
    """Read a file and rebuild its records.

    The scheduler is that which the file begins with, where it does not begin at the beginning.
    Raises ValueError naming the line that is wrong. A last line that was cut off is left out, with
    a warning.
    """
    reading = Reading(str(path))
    for line in _read(Path(path)):
        reading.take(line.parsed, line.num_bytes)
    return reading.header, reading.history, reading.start


class Reading:
    """The lines of a file, or of a run that is still going on, become a history one by one.

    name: of the file, for errors. start: the scheduler with which it begins, where that is not the
    beginning of the run.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.history = History()
        self.start: Scheduler | None = None
        self._header: Header | None = None
        self._rebuild: Rebuild | None = None
        self._number = 0

    @property
    def header(self) -> Header:
        """What the first line says. Raises ValueError if there was none."""
        return self._header or _header(self.name, None)

    def take(self, parsed: Any, num_bytes: int) -> None:
        """The next line, and how long it was. Raises ValueError naming a line that is wrong."""
        self._number += 1
        if self._rebuild is None:
            header = self._header = _header(self.name, parsed)
            about = (header.origin, header.eos, header.vocab_size)
            self._rebuild = Rebuild(*about, self.history)
            return
        try:
            if self._number == 2 and isinstance(parsed, dict) and "state" in parsed:
                run = (self.header.origin, self.header.eos)
                self.start = self._rebuild.begin(parsed["state"], num_bytes, *run)
            else:
                self._rebuild.take(parsed, num_bytes)
        except Exception as error:  # the doors trust an engine; whatever it led to, the file did it
            raise ValueError(f"{self.name}, line {self._number}: {error!r}") from error


class _Line(NamedTuple):
    number: int
    parsed: Any
    num_bytes: int


def parsed(line: bytes) -> Any:
    """What a line says. Raises ValueError or RecursionError if it is no JSON."""
    return json.loads(line, parse_constant=_refuse)


def text(line: dict[str, Any]) -> str:
    """A line of a file."""
    return json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n"


def header_line(header: Header) -> dict[str, Any]:
    """What a file begins with."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": _config_out(header.config),
        "origin": _config_out(header.origin),
        "eos": sorted(header.eos),
        "vocab_size": header.vocab_size,
        "model": header.model,
    }


def line_of(item: Input, spans: Sequence[Span] = ()) -> dict[str, Any]:
    """What a file says of an input. spans: of the record that an outcome made."""
    match item:
        case Add(rid, prompt, sampling):
            return {"add": rid, "prompt": prompt, "sampling": sampling_out(sampling)}
        case Abort(rid):
            return {"abort": rid}
        case Change():
            return {"change": item._asdict()}
        case Plan(rows, preempt, refusals):
            refused = [
                (r.rid, r.why.name, *r[2:5], *([] if r.words is None else [r.words]))
                for r in refusals
            ]
            return {"plan": rows, "preempt": preempt, "refusals": refused}
        case Outcome():
            return {"outcome": item._replace(spans=())._asdict(), "spans": spans}


def _config_out(config: EngineConfig) -> dict[str, Any]:
    out = asdict(config)
    if callable(config.policy):  # its plans are recorded; the function cannot be
        out["policy"] = "prefill_first"
    return out


def _config_in(line: dict[str, Any]) -> EngineConfig:
    config = EngineConfig().but(**line)
    for name, value in config.limits._asdict().items():
        number(name, int(value), 0, _MOST.get(name))
    return config


def _read(path: Path) -> Iterator[_Line]:
    """Its lines, parsed; a last line without an end is left out with a warning."""
    with path.open("rb") as file:
        at = 0
        while raw := file.readline(_LINE + 1):
            at += 1
            if len(raw) > _LINE:
                raise ValueError(f"{path}, line {at} is longer than {_LINE} bytes")
            try:
                yield _Line(at, parsed(raw), len(raw))
            except (ValueError, RecursionError) as error:
                if raw.endswith(b"\n") or at == 1:
                    raise ValueError(f"{path}, line {at} is not JSON: {error}") from error
                warnings.warn(f"{path}: line {at} was cut off and is left out", RuntimeWarning, 4)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")


def _header(path: str | PathLike[str], line: Any) -> Header:
    if not isinstance(line, dict) or line.get("format") != FORMAT:
        raise ValueError(f"{path} is not a minisgl trace: its first line is no header of one")
    if line.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {line.get('version')!r:.40}; this minisgl reads version "
            f"{VERSION}, a newer one may read more"
        )
    try:
        config = _config_in(line["config"])
        origin = _config_in(line["origin"]) if "origin" in line else config
        eos = frozenset(number("eos", token) for token in line["eos"])
        if not isinstance(model := line["model"], str):
            raise TypeError(f"model must be a text, got {model!r:.80}")
        vocab_size = number("vocab_size", line["vocab_size"], 1)
        return Header(config, eos, vocab_size, model, origin)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the header is wrong: {error}") from error
