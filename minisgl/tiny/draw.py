"""One document's randomness, and the line between what is trained on and what is held out."""

import zlib
from collections.abc import Callable
from random import Random
from typing import NamedTuple, TypeVar

from minisgl.tiny.words import NAMES, SURNAMES

T = TypeVar("T")


def held_out(key: str) -> bool:
    """Whether turns with this key are kept from training: one key in ten, by CRC-32; "" (general
    talk) never.
    """
    return key != "" and zlib.crc32(key.encode()) % 10 == 0


class Turn(NamedTuple):
    """A user's message, the right answer, and what the split hashes ("" where there is nothing to
    hold out).
    """

    user: str
    answer: str
    key: str


class Task(NamedTuple):
    """Turns that belong together. `apart` marks turns (after the first) that can stand far from the
    first.
    """

    turns: tuple[Turn, ...]
    system: str | None = None
    apart: tuple[bool, ...] = ()


class Draw:
    """The randomness of one document. Hands out each name once; keeps to one side of the split."""

    def __init__(self, rng: Random, held: bool = False) -> None:
        self.rng = rng
        self.held = held
        self._names: list[str] = []
        self._people: set[str] = set()

    def name(self) -> str:
        """A first name that this document has not used (until all have been)."""
        if not self._names:
            self._names = self.rng.sample(NAMES, len(NAMES))
        return self._names.pop()

    def person(self) -> str:
        """First name and surname, new in this document."""
        while True:
            person = f"{self.rng.choice(NAMES)} {self.rng.choice(SURNAMES)}"
            if person not in self._people:
                self._people.add(person)
                return person

    def settle(self, make: Callable[[], T], key: Callable[[T], str]) -> T:
        """The first value of `make` whose key is on this document's side of the split."""
        while True:
            value = make()
            if held_out(key(value)) == self.held:
                return value

    def ours(self, key: str) -> bool:
        """Whether a turn with this key may stand in this document as a question."""
        return held_out(key) == self.held
