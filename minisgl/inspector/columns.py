"""The film's format: tables of integers, one binary column each, behind a small JSON header.

::

    chunk   "MSGL" | u32 version | u32 bytes of the header | header | columns
    header  JSON in UTF-8, padded with spaces to a multiple of 8 bytes from the chunk's start:
            "size" (of the chunk), "columns": {"table.name": [dtype, offset, count]}, and others
    column  little-endian numbers of the smallest dtype that holds them, padded to 8 bytes

Column ``steps.T`` counts the rows of table T that belong to each step. Chunks are concatenated.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

MAGIC: Final = b"MSGL"
VERSION: Final = 1
# Each table's columns; "steps" has one row per step, which also counts the rows of the others.
TABLES: Final = {
    "rows": ("rid", "start", "length", "kind"),
    "refusals": ("rid", "why", "asked", "left", "by"),
    "events": ("kind", "rid", "value"),
    "requests": ("rid", "prompt_len", "max_tokens", "arrival", "head", "tail"),
    "pages": ("page", "holders", "node", "owner"),
    "nodes": ("id", "parent", "depth", "size", "used", "maker", "said"),
    "spans": ("lane", "name", "gap", "length"),
    "gaps": ("lane", "cause", "start", "length"),
    "hits": ("rid", "page"),
}
GAUGES: Final = ("free", "cached", "evictable", "promised", "waiting", "running", "failed")
_DTYPES: Final = ("u1", "i1", "u2", "i2", "u4", "i4")


class Columns:
    """Tables that are being written, a row at a time, for one chunk."""

    def __init__(self) -> None:
        names = [f"{table}.{name}" for table, columns in TABLES.items() for name in columns]
        names += [f"steps.{name}" for name in (*TABLES, *GAUGES)]
        names += ["requests.tokens", "nodes.tokens", "events.pages"]
        self._columns: dict[str, list[int]] = {name: [] for name in names}
        self._rows: dict[str, list[list[int]]] = {
            table: [self._columns[f"{table}.{name}"] for name in columns]
            for table, columns in TABLES.items()
        }

    def begin_step(self) -> None:
        """What is added from now on belongs to the next step."""
        for name in (*TABLES, *GAUGES):
            self._columns[f"steps.{name}"].append(0)

    def set_step(self, **numbers: int) -> None:
        """The step's own numbers, by the names in ``GAUGES``."""
        for name, value in numbers.items():
            self._columns[f"steps.{name}"][-1] = int(value)

    def add(self, table: str, **values: int) -> None:
        """One row of a table; the columns in the order of ``TABLES``."""
        assert tuple(values) == TABLES[table], f"{table} has the columns {TABLES[table]}"
        for column, value in zip(self._rows[table], values.values(), strict=True):
            column.append(value)
        self._columns[f"steps.{table}"][-1] += 1

    def add_rows(self, table: str, *columns: Sequence[int]) -> None:
        """Rows of a table, as one sequence for each column; where there are many, this is quick."""
        for column, values in zip(self._rows[table], columns, strict=True):
            assert len(values) == len(columns[0]), f"{table} has columns of one length"
            column.extend(values)
        self._columns[f"steps.{table}"][-1] += len(columns[0])

    def extend(self, name: str, values: Iterable[int]) -> None:
        """Further numbers of a column that no step counts."""
        self._columns[name].extend(values)

    def pack(self, header: dict[str, Any]) -> bytes:
        """The chunk."""
        blocks, where, at = list[bytes](), dict[str, list[Any]](), 0
        for name, values in self._columns.items():
            dtype, block = _smallest(values)
            where[name] = [dtype, at, len(values)]
            blocks.append(block + bytes(-len(block) % 8))
            at += len(blocks[-1])
        # The offsets count from the chunk's start, which the header's own length moves: so leave
        # room for them to grow.
        room = len(json.dumps(header | {"columns": where, "size": 0})) + 16 * (len(where) + 1)
        begin = -(-(12 + room) // 8) * 8
        for entry in where.values():
            entry[1] += begin
        full = header | {"columns": where, "size": begin + at}
        text = json.dumps(full, separators=(",", ":"), allow_nan=False).encode()
        assert len(text) <= begin - 12
        head = MAGIC + struct.pack("<II", VERSION, begin - 12)
        return b"".join([head, text.ljust(begin - 12), *blocks])


def _smallest(values: list[int]) -> tuple[str, bytes]:
    """The smallest dtype that holds all of these, and them in it; f8 beyond 32 bits."""
    whole = np.array(values, "<i8")
    low, high = (whole.min(), whole.max()) if values else (0, 0)
    for name in _DTYPES:
        info = np.iinfo(name)
        if info.min <= low and high <= info.max:
            return name, whole.astype("<" + name).tobytes()
    return "f8", whole.astype("<f8").tobytes()
