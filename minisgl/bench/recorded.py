"""Files that recorded what real services were asked: lengths and times, no text.

Mooncake: JSON lines with ``timestamp`` (ms), ``input_length``, ``output_length`` and ``hash_ids``,
one for each 512 tokens of the prompt; equal ids are equal tokens after equal tokens.
Source: Qin et al. 2025 (FAST), appendix.
Azure: CSV with ``TIMESTAMP`` (a date and time), ``ContextTokens`` and ``GeneratedTokens``.
Source: Patel et al. 2024 (ISCA), "Splitwise".
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any, Final, NamedTuple

from minisgl.bench.item import Item, Piece
from minisgl.core import as_int

_DATA: Final = Path(__file__).parent / "data"
MOONCAKE: Final = _DATA / "mooncake_conversation.jsonl"  # the excerpts that come with the package
AZURE: Final = _DATA / "azure_conversation.csv"

_BLOCK: Final = 512  # tokens of a hash id
_MOST_TOKENS: Final = 10_000_000  # of a prompt; more is no length but a mistake
_MOST_TIME: Final = 1e12  # milliseconds, thirty years
_LONGEST_LINE: Final = 1 << 20  # bytes
_COLUMNS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_MOMENT: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII
)


class Entry(NamedTuple):
    """One recorded request."""

    seconds: float  # when it came, from the first one
    input_len: int
    output_len: int
    blocks: tuple[int, ...] | None = None  # what each 512 tokens of the prompt are; None: unknown


def read_mooncake(path: str | PathLike[str], limit: int | None = None) -> list[Entry]:
    """The entries of a Mooncake trace in order of arrival, of its first ``limit`` requests.

    Raises ValueError naming file and line for one that is none, FileNotFoundError.
    """
    entries = []
    for text, wrong in _some(_lines(path), limit):
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise wrong(f"no JSON: {error}") from None
        if not isinstance(fields, dict):
            raise wrong(f"a JSON object is expected, got {text[:40]!r}")
        input_len = _tokens(fields, "input_length", wrong)
        output_len = _tokens(fields, "output_length", wrong)
        time, blocks = fields.get("timestamp"), fields.get("hash_ids")
        if isinstance(time, bool) or not isinstance(time, int | float):
            raise wrong(f"timestamp is {time!r:.40}, not a number of milliseconds")
        if not 0 <= time <= _MOST_TIME:
            raise wrong(f"timestamp is {time!r:.40} milliseconds")
        if not isinstance(blocks, list) or not all(type(b) is int and b >= 0 for b in blocks):
            raise wrong(f"hash_ids is {blocks!r:.40}, not a list of whole numbers")
        if len(blocks) != -(-input_len // _BLOCK):
            raise wrong(
                f"{input_len} tokens in blocks of {_BLOCK} have {-(-input_len // _BLOCK)} "
                f"hash_ids, here are {len(blocks)}"
            )
        entries.append(Entry(time / 1000, input_len, output_len, tuple(blocks)))
    return _in_order(entries, path)


def read_azure(path: str | PathLike[str], limit: int | None = None) -> list[Entry]:
    """The entries of an Azure LLM inference trace in order of arrival, likewise."""
    lines = _lines(path)
    head, wrong = next(lines, ("", _error(path, 1)))
    columns = _cells(head, wrong)
    if missing := [name for name in _COLUMNS if name not in columns]:
        raise wrong(f"the columns {', '.join(_COLUMNS)} are expected, {missing[0]} is missing")
    entries: list[Entry] = []
    first: datetime | None = None
    for text, wrong in _some(lines, limit):
        cells = _cells(text, wrong)
        if len(cells) != len(columns):
            raise wrong(f"{len(columns)} columns are expected, here are {len(cells)}")
        fields: dict[str, Any] = dict(zip(columns, cells, strict=True))
        for name in _COLUMNS[1:]:
            if re.fullmatch(r"-?\d{1,18}", fields[name], re.ASCII):
                fields[name] = int(fields[name])
        input_len, output_len = (_tokens(fields, name, wrong) for name in _COLUMNS[1:])
        moment = _moment(fields["TIMESTAMP"], wrong)
        first = first or moment
        if (moment.tzinfo is None) != (first.tzinfo is None):
            raise wrong("its time zone is given, the first line's is not, or the other way round")
        entries.append(Entry((moment - first).total_seconds(), input_len, output_len))
    return _in_order(entries, path)


def items(
    entries: Sequence[Entry], name: str, scale: float, max_len: int | None
) -> tuple[tuple[Item, ...], int]:
    """The entries as requests, and how many of them were cut.

    scale: what every length is multiplied by, blocks included; at least one token is left.
    max_len: prompt and answer have so many tokens at most. Of longer ones the answer is cut to
    half of that, then the prompt's end.
    Equal hash ids become equal pieces; where there are none, no two prompts share a token.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"scale must be a number, got {scale!r}")
    if not (isfinite(scale) and 0 < scale <= 1000):
        raise ValueError(f"scale must be above 0 and at most 1000, got {scale}")
    if max_len is not None:
        max_len = as_int("max_len", max_len, 2)
    out, cut = [], 0
    for i, entry in enumerate(entries):
        input_len, output_len = _scaled(entry.input_len, scale), _scaled(entry.output_len, scale)
        if max_len is not None and input_len + output_len > max_len:
            output_len = min(output_len, max_len // 2)
            input_len, cut = min(input_len, max_len - output_len), cut + 1
        if entry.blocks:
            names, block = [f"{name} {b}" for b in entry.blocks], _scaled(_BLOCK, scale)
        else:
            names, block = [f"{name} request {i}"], input_len
        out.append(Item(_pieces(names, block, input_len), output_len, arrival=entry.seconds))
    return tuple(out), cut


def _pieces(names: Sequence[str], block: int, total: int) -> tuple[Piece, ...]:
    """So many tokens in blocks; rounding of lengths may leave the last one longer or out."""
    pieces = []
    for k, name in enumerate(names):
        rest = total - k * block
        if rest <= 0:
            break
        last = k == len(names) - 1
        pieces.append(Piece(name, rest if last else min(block, rest)))
    return tuple(pieces)


def _scaled(length: int, scale: float) -> int:
    return max(1, round(length * scale))


def _in_order(entries: list[Entry], path: str | PathLike[str]) -> list[Entry]:
    if not entries:
        raise ValueError(f"{path} has no requests")
    entries.sort(key=lambda entry: entry.seconds)
    start = entries[0].seconds
    return [entry._replace(seconds=entry.seconds - start) for entry in entries]


_Wrong = Callable[[str], ValueError]


def _error(path: str | PathLike[str], number: int) -> _Wrong:
    return lambda what: ValueError(f"{path}, line {number}: {what}")


def _lines(path: str | PathLike[str]) -> Iterator[tuple[str, _Wrong]]:
    """Each line that is not blank, and how to complain about it."""
    with Path(path).open("rb") as file:
        number = 0
        while raw := file.readline(_LONGEST_LINE + 1):
            number += 1
            wrong = _error(path, number)
            if len(raw) > _LONGEST_LINE:
                raise wrong(f"it is longer than {_LONGEST_LINE} bytes")
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise wrong(f"no UTF-8 text: {error.reason} at byte {error.start}") from None
            if text:
                yield text, wrong


def _some(lines: Iterator[tuple[str, _Wrong]], limit: int | None) -> Iterator[tuple[str, _Wrong]]:
    left = None if limit is None else as_int("limit", limit, 1)
    for line in lines:
        yield line
        if left is not None:
            left -= 1
            if left == 0:
                return


def _cells(text: str, wrong: _Wrong) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([text], strict=True), [])]
    except csv.Error as error:
        raise wrong(f"no CSV: {error}") from None


def _tokens(fields: dict[str, Any], name: str, wrong: _Wrong) -> int:
    value = fields.get(name)
    if type(value) is not int:
        raise wrong(f"{name} is {value!r:.40}, not a number of tokens")
    if not 0 <= value <= _MOST_TOKENS:
        raise wrong(f"{name} is {value}; a prompt or answer has 0 to {_MOST_TOKENS} tokens")
    return value


def _moment(text: str, wrong: _Wrong) -> datetime:
    found = _MOMENT.fullmatch(text)
    try:
        if found is None:
            raise ValueError("not like 2023-11-16 18:15:46.6805900")
        date, time, fraction, zone = found.groups()
        zone = "+00:00" if zone == "Z" else zone or ""
        whole = datetime.fromisoformat(f"{date} {time}{zone}")
    except ValueError as error:
        raise wrong(f"TIMESTAMP is {text[:40]!r}: {error}") from None
    return whole + timedelta(seconds=float(f"0.{fraction or 0}"))
