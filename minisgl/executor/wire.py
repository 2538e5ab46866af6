"""What an engine and its worker processes say to each other: msgpack with a schema, never pickle.

Each command is answered once by each rank, in order.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw, Struct

from minisgl.core import Batch, Draw, KernelSpan, Outcome, Row
from minisgl.sampling import SamplingParams


class Start(Struct, frozen=True, tag=True):
    """Meet the other ranks and load a part of the model. Answered by Ready."""

    rank: int
    size: int
    folder: str
    config: dict[str, bool | int | str | None]  # the fields of a resolved EngineConfig
    depth: int
    meeting: str  # the file that ranks meet in
    patience: float  # seconds that a rank waits for the others


class Launch(Struct, frozen=True, tag=True):
    """Compute a batch on a runner's pages. batch: what ``pack_batch`` made of it."""

    runner: int
    batch: Raw


class Save(Struct, frozen=True, tag=True):
    """Copy the contents of these pages, and the tables, and keep them under these numbers."""

    runner: int
    contents: int
    pages: tuple[int, ...]
    tables: int


class Part(NamedTuple):
    """Pages, and the rows of some kept contents that go there."""

    contents: int
    pages: tuple[int, ...]
    rows: tuple[int, ...]


class Restore(Struct, frozen=True, tag=True):
    """Write kept contents and tables back."""

    runner: int
    parts: tuple[Part, ...]
    tables: int


class Fork(Struct, frozen=True, tag=True):
    """Make blank pages and tables beside a runner's, for a runner of that number."""

    runner: int
    twin: int


class Forget(Struct, frozen=True, tag=True):
    """Drop runners, contents and tables that nobody can name any more."""

    numbers: tuple[int, ...]


class Profile(Struct, frozen=True, tag=True):
    """Begin to watch what is computed, or end it; what was seen is the answer to the latter."""

    on: bool


class Close(Struct, frozen=True, tag=True):
    """End. Not answered."""


class Ready(Struct, frozen=True, tag=True):
    """A rank has its part of the model. Bytes are this rank's."""

    page_bytes: int
    table_bytes: int
    warnings: tuple[str, ...]


class Done(Struct, frozen=True, tag=True):
    """A command was carried out; num_collectives: that this took.

    outcome: of a Launch; the ranks after the first tell no more than their spans. seen: of the end
    of a Profile.
    """

    num_collectives: int = 0
    outcome: Outcome | None = None
    seen: tuple[KernelSpan, ...] = ()


class Failed(Struct, frozen=True, tag=True):
    """A command raised an exception: its class's name, its text, where it happened.

    num_collectives: completed before; None if it was one that failed.
    """

    kind: str
    text: str
    where: str
    num_collectives: int | None


Command = Start | Launch | Save | Restore | Fork | Forget | Profile | Close
Answer = Ready | Done | Failed

_encoder: Final = msgspec.msgpack.Encoder()
_commands: Final = msgspec.msgpack.Decoder(Command)
_answers: Final = msgspec.msgpack.Decoder(Answer)


def pack(message: Command | Answer) -> bytes:
    """A message as bytes."""
    return _encoder.encode(message)


def command(data: bytes) -> Command:
    """The command in these bytes. Raises msgspec.DecodeError if there is none."""
    message: Command = _commands.decode(data)
    return message


def answer(data: bytes) -> Answer:
    """The answer in these bytes. Raises msgspec.DecodeError if there is none."""
    message: Answer = _answers.decode(data)
    return message


class _Row(NamedTuple):
    """A ``Row`` whose sampling is not looked into: step after step brings the same."""

    rid: int
    slot: int
    start: int
    length: int
    token_ids: tuple[int, ...] | None
    first_page: int
    new_pages: tuple[int, ...]
    emits: bool
    sampling: Raw
    draw: Draw | None


_batches: Final = msgspec.msgpack.Decoder(tuple[int, tuple[_Row, ...]])


def pack_batch(batch: Batch) -> Raw:
    """A batch, to be sent in a Launch."""
    return Raw(_encoder.encode(batch))


def unpack_batch(data: Raw) -> Batch:
    """What ``pack_batch`` packed. Raises msgspec.DecodeError if it is none."""
    step, rows = _batches.decode(data)
    return Batch(step, tuple(_whole(row) for row in rows))


def _whole(row: _Row) -> Row:
    *before, sampling, draw = row
    fields: Any = (*before, _sampling(bytes(sampling)), draw)
    return Row(*fields)


@lru_cache(maxsize=1024)
def _sampling(data: bytes) -> SamplingParams:
    """Checking one takes 5 us, and a request has one for all its steps."""
    return msgspec.msgpack.decode(data, type=SamplingParams)
