"""One request of a workload, made beforehand: what is asked, how much is answered, when it comes.

A prompt that nobody wrote is a row of pieces: names with lengths. What tokens a name stands for is
decided when a model is there, so one workload fits every vocabulary, and equal pieces are equal
tokens in whatever prompt they stand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from random import Random
from typing import Any, NamedTuple

from minisgl.core import as_int


class Piece(NamedTuple):
    """So many tokens that are a function of the name alone.

    Of two pieces with one name the shorter is the beginning of the longer.
    """

    name: str
    num_tokens: int

    def ids(self, usable: Sequence[int]) -> list[int]:
        """Its tokens, drawn from the ids that a prompt may hold."""
        return Random(self.name).choices(usable, k=self.num_tokens)


ItemPrompt = str | tuple[Piece, ...] | tuple[int, ...] | tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One request.

    prompt: pieces, or what ``engine.add`` takes: a text, token ids, a chat.
    output_len: tokens that are generated, neither more nor fewer.
    arrival: when it comes, from the start, in the workload's unit of time.
    after: the place in the workload of a request that must be finished before this one is sent: the
        turn before it, the thought it goes on from.
    group: the conversation, document or task it belongs to, for whoever looks.
    Raises TypeError or ValueError, naming the field, for a value that can never be right.
    """

    prompt: ItemPrompt
    output_len: int
    arrival: float = 0.0
    after: int | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", _prompt(self.prompt))
        object.__setattr__(self, "output_len", as_int("output_len", self.output_len, 1))
        if isinstance(self.arrival, bool) or not isinstance(self.arrival, int | float):
            raise TypeError(f"arrival must be a number, got {self.arrival!r}")
        if not isfinite(self.arrival) or self.arrival < 0:
            raise ValueError(f"arrival must be finite and not negative, got {self.arrival}")
        if self.after is not None:
            object.__setattr__(self, "after", as_int("after", self.after, 0))
        if self.group is not None and not isinstance(self.group, str):
            raise TypeError(f"group must be a string or None, got {self.group!r}")

    @property
    def prompt_len(self) -> int | None:
        """Tokens of the prompt; None for a text or a chat, which only a tokenizer can count."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], Mapping):
            return None
        return sum(piece.num_tokens for piece in _as_pieces(self.prompt))

    def to_send(self, usable: Sequence[int]) -> str | Sequence[int] | Sequence[Mapping[str, Any]]:
        """What ``engine.add`` takes; the tokens of pieces come from the usable ids."""
        pieces = [part for part in self.prompt if isinstance(part, Piece)]
        if pieces:
            return [token for piece in pieces for token in piece.ids(usable)]
        prompt: Any = self.prompt
        return prompt if isinstance(prompt, str) else list(prompt)


def shared_lens(items: Sequence[Item]) -> list[int | None]:
    """For each item, how many tokens its prompt has in common with the head of an earlier one.

    The most that any prefix cache could reuse, answers aside. None where the length is not known.
    """
    root: _Node = {}
    out: list[int | None] = []
    for item in items:
        if item.prompt_len is None:
            out.append(None)
            continue
        assert not isinstance(item.prompt, str)
        out.append(_enter(root, _as_pieces(item.prompt)))
    return out


_Node = dict[str, dict[int, Any]]  # name -> length -> node


def _enter(node: _Node, pieces: Sequence[Piece]) -> int:
    shared, known = 0, True
    for piece in pieces:
        twins = node.setdefault(piece.name, {})
        if known:
            shared += max((min(piece.num_tokens, n) for n in twins), default=0)
            known = piece.num_tokens in twins
        node = twins.setdefault(piece.num_tokens, {})
    return shared


def _as_pieces(prompt: Sequence[Any]) -> list[Piece]:
    return [part if isinstance(part, Piece) else Piece(f"id {part}", 1) for part in prompt]


def _prompt(prompt: Any) -> ItemPrompt:
    if isinstance(prompt, str):
        if not prompt:
            raise ValueError("a prompt must not be empty")
        return prompt
    if hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
    if isinstance(prompt, bytes | Mapping) or not isinstance(prompt, Sequence):
        raise TypeError(
            f"a prompt is a text, pieces, token ids or chat messages, got {type(prompt).__name__}"
        )
    if not prompt:
        raise ValueError("a prompt must not be empty")
    if all(isinstance(part, Piece) for part in prompt):
        return tuple(Piece(str(p.name), as_int("num_tokens", p.num_tokens, 1)) for p in prompt)
    if all(isinstance(part, Mapping) for part in prompt):
        return tuple(dict(part) for part in prompt)
    return tuple(as_int("a token id", part, 0) for part in prompt)
