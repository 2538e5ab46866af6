"""Sides in turn, A B A B, so that a machine whose speed drifts does so for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple

from minisgl.bench.sides import Side, Tokens
from minisgl.bench.work import Work


class Result(NamedTuple):
    """How fast one side was, in generated tokens per second; one value for each round."""

    work: str
    side: str
    per_second: list[float]
    per_cpu_second: list[float]
    equal: float  # share of requests whose tokens are the first side's

    @property
    def rate(self) -> float:
        """The median of tokens per CPU second."""
        return median(self.per_cpu_second)


def in_turn(
    sides: Sequence[Side], work: Callable[[int], Work], rounds: int, warm_up: bool = True
) -> list[Result]:
    """Each side's result on ``work(round)``: every round has prompts of its own, the same for all,
    so that no cache knows them. The warm-up round is not counted.
    """
    results: list[Result] = []
    same: list[list[bool]] = [[] for _ in sides]
    for number in range(-1 if warm_up else 0, rounds):
        todo = work(number)
        said: Tokens | None = None
        for i, side in enumerate(sides):
            start, cpu = perf_counter(), process_time()
            tokens = side.run(todo)
            cpu, seconds = process_time() - cpu, perf_counter() - start
            said = said or tokens
            assert list(map(len, tokens)) == [asked.num_tokens for asked in todo.requests]
            same[i] += [a == b for a, b in zip(tokens, said, strict=True)]
            if len(results) <= i:
                results.append(Result(todo.name, side.name, [], [], 0.0))
            if number >= 0:
                results[i].per_second.append(todo.num_tokens / seconds)
                results[i].per_cpu_second.append(todo.num_tokens / cpu)
    return [
        result._replace(equal=sum(equals) / len(equals))
        for result, equals in zip(results, same, strict=True)
    ]


def ratios(results: Sequence[Result]) -> Iterator[float]:
    """How many times as fast as each side the first one is: the median over the rounds."""
    for result in results:
        pairs = zip(results[0].per_cpu_second, result.per_cpu_second, strict=True)
        yield median(first / other for first, other in pairs)
