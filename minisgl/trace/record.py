"""A run written to files while it happens, for servers: bounded, and never in the way.

A file ends when it is full, and the next begins at a moment when nothing is in flight, with the
host's state as it then stands: so each file can be loaded by itself. (The alternatives: beginning
when the engine is idle, which a busy server never is; or with an empty prefix cache, which would
cost those who are served.) An error of the disk ends the recording and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import IO, Any, NamedTuple

from minisgl.core import Input, Outcome, StepRecord
from minisgl.trace.file import Header, header_line, line_of, text
from minisgl.trace.redact import Redaction


class Limits(NamedTuple):
    """num_bytes: after which a file is full. num_files: kept; the oldest goes."""

    num_bytes: int = 64 << 20
    num_files: int = 4


class Tape:
    """One run as lines while it happens. Give ``listen`` every input and ``record`` every record,
    in order, from ``begin`` on.

    redact: leave out what was said; who came when, how long it was and what was shared stays.
    """

    def __init__(self, header: Header, redact: bool = False) -> None:
        self._redaction = Redaction(header.eos) if redact else None
        self._header = self._redaction.header(header) if self._redaction else header
        self._inputs: list[Input] = []  # since the last record

    def begin(self, state: dict[str, Any] | None) -> str:
        """The lines that a file begins with. Nothing may be in flight.

        state: the host's; None for an engine that has done nothing yet.
        """
        self._inputs.clear()
        head = text(header_line(self._header))
        if state is None:
            return head
        state = self._redaction.state(state) if self._redaction else state
        return head + text({"state": state})

    def listen(self, item: Input) -> None:
        """Note an input; its line comes with the next record's."""
        self._inputs.append(item)

    def record(self, record: StepRecord | None) -> str:
        """The lines of what has passed since the last record; None: without a record."""
        inputs, self._inputs = self._inputs, []
        lines = list[str]()
        for item in inputs:
            if self._redaction:
                item = self._redaction.input(item)
            known = isinstance(item, Outcome) and record and item.step == record.batch.step
            lines.append(text(line_of(item, record.spans if known and record else ())))
        if self._redaction and record:
            self._redaction.forget(record)
        return "".join(lines)


class Recorder:
    """Writes one run. Give ``listen`` every input and ``record`` every record, in order.

    path: of the newest file; older ones get ``.1``, ``.2`` and so on before its suffix. redact:
    leave out what was said; who came when, how long it was and what was shared stays.
    """

    def __init__(
        self, path: Path, header: Header, limits: Limits | None = None, redact: bool = False
    ) -> None:
        self.path = path
        self.failed: str | None = None  # what ended it early
        self._limits = limits or Limits()
        self._tape = Tape(header, redact)
        self._out: IO[str] | None = None
        self._size = 0

    @property
    def is_on(self) -> bool:
        """Whether it writes."""
        return self._out is not None

    @property
    def wants_state(self) -> bool:
        """Whether ``begin`` should be called as soon as nothing is in flight."""
        return self.is_on and self._size >= self._limits.num_bytes

    def begin(self, state: dict[str, Any] | None) -> None:
        """Begin a file; one that was begun before is over. Nothing may be in flight.

        state: the host's; None for an engine that has done nothing yet.
        """
        self.end()
        self.failed, self._size = None, 0
        try:
            self._make_room()
            private = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._out = open(private, "w", encoding="utf-8")  # noqa: SIM115 (until it is full)
            self._write(self._tape.begin(state))
        except OSError as error:
            self._fail(error)

    def listen(self, item: Input) -> None:
        """Note an input; it is written with the next record."""
        if self.is_on:
            self._tape.listen(item)

    def record(self, record: StepRecord) -> None:
        """Write what has passed since the last record."""
        self._flush(record)

    def end(self) -> None:
        """Write what is left, and no more. Called twice, it does nothing."""
        self._flush(None)
        out, self._out = self._out, None
        if out is not None:
            try:
                out.close()
            except OSError as error:
                self._fail(error)

    def _flush(self, record: StepRecord | None) -> None:
        if not self.is_on:
            return
        try:
            self._write(self._tape.record(record))
        except OSError as error:
            self._fail(error)

    def _write(self, lines: str) -> None:
        assert self._out is not None
        self._size += self._out.write(lines)
        self._out.flush()

    def _fail(self, error: OSError) -> None:
        out, self._out = self._out, None
        self.failed = f"the recording in {self.path} ended: {error.strerror or error}"
        if out is not None:
            with contextlib.suppress(OSError):  # it writes what is buffered: that may fail again
                out.close()
        warnings.warn(f"{self.failed}; the engine goes on", RuntimeWarning, stacklevel=3)

    def _make_room(self) -> None:
        """Rename older files by one, and delete the oldest."""
        names = [self.path, *(self._numbered(n) for n in range(1, self._limits.num_files))]
        names[-1].unlink(missing_ok=True)
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            if newer.is_file():
                newer.rename(older)

    def _numbered(self, n: int) -> Path:
        return self.path.with_name(f"{self.path.stem}.{n}{self.path.suffix}")
