"""A list of requests made beforehand, the same for every engine that it is given to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from minisgl.bench import recorded
from minisgl.bench.arrivals import Arrivals, arrival_times
from minisgl.bench.item import Item, shared_lens
from minisgl.bench.synthetic import Kind, synthetic
from minisgl.core import as_int
from minisgl.display import Html, Part, bar, card, table
from minisgl.engine.engine import Engine
from minisgl.engine.prompt import Prompt

if TYPE_CHECKING:
    import pandas

Clock = Literal["seconds", "steps"]

# What each fact of a workload is in a sentence.
_PHRASES = {
    "requests": "{} requests",
    "prompts": "prompts of {}",
    "prompts as text": "{} prompts as text",
    "answers": "answers of {}",
    "follow an answer": "{} follow an answer",
    "arrivals": "{}",
}
_SCALE = 1 / 16  # of recorded lengths: a block of 512 tokens becomes two pages of 16
_MAX_LEN = 1024  # tokens; the embedded model holds four times as many


@dataclass(frozen=True, repr=False)
class Workload:
    """Requests in an order, and how they arrive. Immutable; ``len``, iteration, ``workload[k]``.

    Made by ``synthetic``, ``from_prompts``, ``from_mooncake`` or ``from_azure``; ``arriving``
    changes how the requests come. Whoever serves a workload does the same work: every request
    generates greedily and to its exact length, past any end of text.

    concurrency: so many are under way at a time; the next is sent when one ends. None: each is sent
    when it arrives. An item that names another in ``after`` is sent once that one is finished.
    clock: what arrival times count. "seconds" are real: what meets in a batch then depends on the
    machine, and counts of steps and reused tokens may differ between runs. "steps" are the
    engine's, those in which nothing could run left out: then the counts are exactly reproducible.
    """

    items: tuple[Item, ...]
    name: str = "requests"
    concurrency: int | None = None
    clock: Clock = "seconds"

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(self.items))
        if not self.items:
            raise ValueError("a workload has at least one request")
        for i, item in enumerate(self.items):
            if not isinstance(item, Item):
                raise TypeError(f"item {i} is {item!r:.60}; a workload holds Items")
            if item.after is not None and item.after >= i:
                raise ValueError(
                    f"item {i} comes after item {item.after}; it may wait only for an earlier one"
                )
        if self.concurrency is not None:
            object.__setattr__(self, "concurrency", as_int("concurrency", self.concurrency, 1))
        if self.clock not in get_args(Clock):
            raise ValueError(f"clock must be one of {get_args(Clock)}, got {self.clock!r}")

    # ---- making ----------------------------------------------------------------------------------

    @staticmethod
    def synthetic(
        kind: Kind, requests: int = 32, seed: int = 0, **sizes: int | tuple[int, int]
    ) -> Workload:
        """Made-up requests that share the beginnings of their prompts, all there at once.

        shared_prefix: a few system prompts, each with many requests. chat: conversations of several
        turns. few_shot: tasks with worked examples, of which a request has the first few. tree:
        thoughts that are gone on from in several ways. long_documents: questions about long texts
        in turn.

        A turn or thought is sent when the one before it is finished. Its prompt is the one before
        and filler of the answer's length: answers are not known beforehand, so prompts stay the
        same whatever a model says, and pages of answers are never found again.

        sizes: what ``minisgl.bench.synthetic.SHAPES`` lists for the kind, each a number or a
        (least, most) to draw from.
        Raises ValueError or TypeError for a kind or a size that there is not.
        """
        return Workload(synthetic(kind, requests, seed, sizes), kind)

    @staticmethod
    def from_prompts(prompts: Iterable[Prompt], output_len: int | Sequence[int] = 32) -> Workload:
        """Your own prompts, all there at once: texts, token ids or chats, as ``engine.add`` takes.

        output_len: tokens that each generates, or one number for each.
        """
        given: list[Any] = list(prompts)
        lens = [output_len] * len(given) if isinstance(output_len, int) else list(output_len)
        if len(lens) != len(given):
            raise ValueError(f"{len(given)} prompts have {len(lens)} output lengths")
        return Workload(tuple(map(Item, given, lens)), "prompts")

    @staticmethod
    def from_mooncake(
        path: str | PathLike[str] | None = None,
        *,
        limit: int | None = None,
        scale: float = _SCALE,
        max_len: int | None = _MAX_LEN,
        rate: float | None = None,
        speed: float | None = None,
        clock: Clock = "seconds",
    ) -> Workload:
        """Requests of a Mooncake trace, at the times it recorded. Without a path, of the excerpt
        that comes with minisgl.

        Prompts with equal ``hash_ids`` truly begin with the same tokens. limit: the first so many.
        scale: what lengths are multiplied by. max_len: prompt and answer together; what is longer
        is cut. rate, speed, clock: see ``arriving``.
        Raises ValueError naming file and line for what is no such trace.
        """
        path = recorded.MOONCAKE if path is None else Path(path)
        made = _recorded(path, recorded.read_mooncake(path, limit), scale, max_len)
        return made.arriving("recorded", rate=rate, speed=speed, clock=clock)

    @staticmethod
    def from_azure(
        path: str | PathLike[str] | None = None,
        *,
        limit: int | None = None,
        scale: float = _SCALE,
        max_len: int | None = _MAX_LEN,
        rate: float | None = None,
        speed: float | None = None,
        clock: Clock = "seconds",
    ) -> Workload:
        """Requests of an Azure LLM inference trace, likewise. It says nothing of what prompts have
        in common, so they have nothing.
        """
        path = recorded.AZURE if path is None else Path(path)
        made = _recorded(path, recorded.read_azure(path, limit), scale, max_len)
        return made.arriving("recorded", rate=rate, speed=speed, clock=clock)

    def arriving(
        self,
        arrivals: Arrivals,
        *,
        rate: float | None = None,
        speed: float | None = None,
        concurrency: int | None = None,
        clock: Clock | None = None,
        seed: int = 0,
    ) -> Workload:
        """The same requests, arriving otherwise.

        at_once: all at the start. closed: ``concurrency`` at a time. poisson: at random, ``rate``
        of them per unit of the clock, drawn with ``seed``. recorded: at the items' own times,
        ``speed`` times as fast, or stretched to a mean ``rate``.
        clock: "seconds" or "steps"; None leaves it.
        Raises TypeError for a number that is missing or does not belong to these arrivals,
        ValueError for one that cannot be.
        """
        numbers: dict[str, Any] = {"rate": rate, "speed": speed, "concurrency": concurrency}
        times = arrival_times(self.items, arrivals, seed=seed, **numbers)
        items = (replace(item, arrival=t) for item, t in zip(self.items, times, strict=True))
        clock = self.clock if clock is None else clock
        return replace(self, items=tuple(items), concurrency=concurrency, clock=clock)

    # ---- looking ---------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def __getitem__(self, k: int) -> Item:
        return self.items[k]

    def __repr__(self) -> str:
        return f"Workload({self.describe()})"

    def describe(self) -> str:
        """What is asked, and how it arrives, in words."""
        return f"{self.name}: {'; '.join(_PHRASES[name].format(it) for name, it in self._facts())}"

    def _repr_html_(self) -> Html:
        shared = sum(n for n in shared_lens(self.items) if n is not None)
        asked = sum(item.prompt_len or 0 for item in self.items)
        parts = (
            Part("of prompts, begun by an earlier one", shared, "reused"),
            Part("of prompts, new", asked - shared, "prefill"),
            Part("of answers", sum(item.output_len for item in self.items), "decode"),
        )
        return card("Workload", self.name, bar("tokens", parts), table((), self._facts()))

    def to_frame(self) -> pandas.DataFrame:
        """A row per request as a pandas frame: request, group, prompt_len, shared, output_len,
        arrival, after.

        shared: tokens that an earlier prompt begins with, too. Raises ModuleNotFoundError without
        pandas (the extra [lab]).
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("frames need pandas: pip install 'minisgl[lab]'") from error
        rows = [
            {
                "request": i,
                "group": item.group,
                "prompt_len": item.prompt_len,
                "shared": shared,
                "output_len": item.output_len,
                "arrival": item.arrival,
                "after": item.after,
            }
            for i, (item, shared) in enumerate(
                zip(self.items, shared_lens(self.items), strict=True)
            )
        ]
        whole = dict.fromkeys(["prompt_len", "shared", "after"], "Int64")
        frame: pandas.DataFrame = pandas.DataFrame(rows).astype(whole)
        return frame

    @property
    def repeatable(self) -> bool:
        """Whether no clock on the wall decides what meets in a batch, so that every run of one
        engine has the same steps.
        """
        return self.clock == "steps" or not any(item.arrival for item in self.items)

    @cached_property
    def digest(self) -> str:
        """A name for exactly these requests, the same everywhere: 16 hexadecimal digits."""
        whole = [[i.prompt, i.output_len, i.arrival, i.after, i.group] for i in self.items]
        text = json.dumps([whole, self.concurrency, self.clock], sort_keys=True)
        return sha256(text.encode()).hexdigest()[:16]

    def prompts(self, engine: Engine) -> list[Prompt]:
        """What to pass to this engine's ``add``, one for each request.

        Pieces become ids that the engine's tokenizer has text for, so no special token is among
        them; without a tokenizer, any ids but those that end a text.
        """
        usable = _usable(engine)
        return [item.to_send(usable) for item in self.items]

    def _facts(self) -> Iterator[tuple[str, str]]:
        """What there is to say, by name; the names are those of ``_PHRASES``."""
        shared = sum(n for n in shared_lens(self.items) if n is not None)
        known = [item.prompt_len for item in self.items if item.prompt_len is not None]
        yield "requests", f"{len(self):,}"
        if known:
            some = f", {shared / sum(known):.0%} of them shared" if shared else ""
            yield "prompts", f"{_range(known)} tokens{some}"
        if texts := len(self) - len(known):
            yield "prompts as text", f"{texts:,}"
        yield "answers", f"{_range([item.output_len for item in self.items])} tokens"
        if waiting := sum(item.after is not None for item in self.items):
            yield "follow an answer", f"{waiting:,}"
        yield "arrivals", self._arrivals()

    def _arrivals(self) -> str:
        if self.concurrency is not None:
            return f"{self.concurrency} at a time"
        last = max(item.arrival for item in self.items)
        return f"arriving within {last:,.4g} {self.clock}" if last else "all at once"


def _recorded(
    path: Path, entries: Sequence[recorded.Entry], scale: float, max_len: int | None
) -> Workload:
    items, cut = recorded.items(entries, path.stem, scale, max_len)
    name = path.stem + (f", lengths x {scale:g}" if scale != 1 else "")
    return Workload(items, name + (f", {cut:,} cut to {max_len}" if cut else ""))


def _usable(engine: Engine) -> list[int]:
    ids = [token for token in range(engine.vocab_size) if token not in engine.eos_ids]
    codec = engine.codec
    if codec is not None:
        ids = [token for token in ids if codec.decode([token])]
    if not ids:
        raise ValueError(f"{engine.model} has no token that a prompt could be made of")
    return ids


def _range(numbers: Sequence[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
