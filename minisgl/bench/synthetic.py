"""Workloads that are made up: five ways in which prompts share their beginnings.

Every length is a number of tokens, or the (least, most) it is evenly drawn from. Answers are not
known when prompts are made, so where a prompt goes on from an answer, filler of the same length
stands in its place; of an answer's pages nothing is ever found again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, Final, Literal, get_args

from minisgl.bench.item import Item, Piece
from minisgl.core import as_int

Kind = Literal["shared_prefix", "chat", "few_shot", "tree", "long_documents"]
Length = int | tuple[int, int]


def synthetic(kind: Kind, requests: int, seed: int, shape: Mapping[str, Any]) -> tuple[Item, ...]:
    """The items of one kind; ``shape`` changes its sizes, which ``SHAPES`` lists.

    Raises ValueError for an unknown kind or a size below one, TypeError for an unknown size.
    """
    if kind not in SHAPES:
        raise ValueError(f"unknown kind {kind!r}; there are {', '.join(get_args(Kind))}")
    make, sizes = SHAPES[kind]
    if unknown := sorted(set(shape) - set(sizes)):
        raise TypeError(f"{kind} has no {', '.join(unknown)}; it has {', '.join(sizes)}")
    chosen = {name: _size(name, shape.get(name, size)) for name, size in sizes.items()}
    count = as_int("requests", requests, 1)
    return tuple(make(_Dice(f"{kind} {as_int('seed', seed, 0)}"), count, chosen))


class _Dice:
    """Draws that are a function of the name, in every version of Python."""

    def __init__(self, name: str) -> None:
        self.name, self._random = name, Random(name)

    def between(self, least: int, most: int) -> int:
        return least + int(self._random.random() * (most - least + 1))

    def piece(self, name: str, length: tuple[int, int]) -> Piece:
        return Piece(f"{self.name}: {name}", self.between(*length))


_Sizes = Mapping[str, tuple[int, int]]


def _shared_prefix(dice: _Dice, requests: int, sizes: _Sizes) -> list[Item]:
    """System prompts: each request has one of a few long beginnings, and something of its own."""
    groups = dice.between(*sizes["groups"])
    heads = [dice.piece(f"prefix {g}", sizes["prefix_len"]) for g in range(groups)]
    items = []
    for i in range(requests):
        g = dice.between(0, groups - 1)
        own = dice.piece(f"request {i}", sizes["prompt_len"])
        items.append(Item((heads[g], own), dice.between(*sizes["output_len"]), group=f"prefix {g}"))
    return items


def _few_shot(dice: _Dice, requests: int, sizes: _Sizes) -> list[Item]:
    """Tasks with worked examples: a request has the first few of its task's, then a question."""
    tasks = dice.between(*sizes["groups"])
    shots = dice.between(*sizes["shots"])
    examples = [
        [dice.piece(f"task {t} example {s}", sizes["shot_len"]) for s in range(shots)]
        for t in range(tasks)
    ]
    items = []
    for i in range(requests):
        t = dice.between(0, tasks - 1)
        known = examples[t][: dice.between(1, shots)]
        own = dice.piece(f"request {i}", sizes["prompt_len"])
        items.append(Item((*known, own), dice.between(*sizes["output_len"]), group=f"task {t}"))
    return items


def _long_documents(dice: _Dice, requests: int, sizes: _Sizes) -> list[Item]:
    """Questions about a few long documents, asked of one after the other: the hardest order for a
    cache that is too small for all and forgets what was used longest ago."""
    count = dice.between(*sizes["groups"])
    documents = [dice.piece(f"document {d}", sizes["prefix_len"]) for d in range(count)]
    items = []
    for i in range(requests):
        own = dice.piece(f"question {i}", sizes["prompt_len"])
        d, output_len = i % count, dice.between(*sizes["output_len"])
        items.append(Item((documents[d], own), output_len, group=f"document {d}"))
    return items


def _chat(dice: _Dice, requests: int, sizes: _Sizes) -> list[Item]:
    """Conversations: a turn's prompt is the turn before it, filler for the answer, a question."""
    items: list[Item] = []
    system, session = dice.piece("system", sizes["system_len"]), 0
    while len(items) < requests:
        prompt: tuple[Piece, ...] = (system,)
        for turn in range(min(dice.between(*sizes["turns"]), requests - len(items))):
            name = f"session {session} turn {turn}"
            prompt += (dice.piece(name, sizes["prompt_len"]),)
            output_len = dice.between(*sizes["output_len"])
            after = len(items) - 1 if turn else None
            items.append(Item(prompt, output_len, after=after, group=f"session {session}"))
            prompt += (Piece(f"{dice.name}: {name} answered", output_len),)
        session += 1
    return items


def _tree(dice: _Dice, requests: int, sizes: _Sizes) -> list[Item]:
    """Trees of thought: each thought is gone on from in several ways, level by level.

    Source: Yao et al. 2023, searched breadth first with nothing pruned.
    """
    items: list[Item] = []
    tree = 0
    while len(items) < requests:
        branching, depth = dice.between(*sizes["branching"]), dice.between(*sizes["depth"])
        problem = (dice.piece(f"tree {tree}", sizes["prompt_len"]),)
        items.append(Item(problem, dice.between(*sizes["output_len"]), group=f"tree {tree}"))
        level = [len(items) - 1]
        for _ in range(depth - 1):
            parents = [parent for parent in level for _ in range(branching)]
            parents = parents[: requests - len(items)]
            level = list(range(len(items), len(items) + len(parents)))
            for parent in parents:
                items.append(_thought(dice, items, parent, sizes))
        tree += 1
    return items


def _thought(dice: _Dice, items: Sequence[Item], parent: int, sizes: _Sizes) -> Item:
    before, place = items[parent], len(items)
    filler = Piece(f"{dice.name}: thought {parent}", before.output_len)
    step = dice.piece(f"step {place}", sizes["step_len"])
    prompt = (*before.prompt, filler, step)
    return Item(prompt, dice.between(*sizes["output_len"]), after=parent, group=before.group)


def _size(name: str, value: Any) -> tuple[int, int]:
    least, most = value if isinstance(value, tuple) and len(value) == 2 else (value, value)
    least, most = as_int(name, least, 1), as_int(name, most, 1)
    if most < least:
        raise ValueError(f"{name} is a (least, most) pair, got {value!r}")
    return least, most


_Make = Callable[[_Dice, int, _Sizes], list[Item]]
# Each kind with its sizes and their defaults, which the embedded model runs in seconds.
SHAPES: Final[Mapping[str, tuple[_Make, Mapping[str, Length]]]] = {
    "shared_prefix": (
        _shared_prefix,
        {"groups": 4, "prefix_len": 128, "prompt_len": (8, 48), "output_len": (8, 32)},
    ),
    "chat": (
        _chat,
        {"turns": 4, "system_len": 48, "prompt_len": (8, 32), "output_len": (16, 48)},
    ),
    "few_shot": (
        _few_shot,
        {"groups": 2, "shots": 6, "shot_len": 48, "prompt_len": (8, 32), "output_len": (4, 16)},
    ),
    "tree": (
        _tree,
        {
            "branching": 2,
            "depth": 4,
            "prompt_len": (64, 128),
            "step_len": (4, 12),
            "output_len": (16, 32),
        },
    ),
    "long_documents": (
        _long_documents,
        {"groups": 3, "prefix_len": (512, 1024), "prompt_len": (8, 32), "output_len": (8, 32)},
    ),
}
