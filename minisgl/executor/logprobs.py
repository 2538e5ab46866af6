"""How likely tokens were: log probabilities of the raw distribution, as records for the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from minisgl.core import Logprob, Row

_BLOCK: Final = 1 << 24  # logits that are looked at together: prompts are long, vocabularies large


def of_tokens(logits: Tensor, tokens: Tensor, rows: Sequence[Row]) -> list[Logprob | None]:
    """For each row the record of its token, None where its request does not ask.

    logits: (rows, vocab_size), raw; tokens: (rows,).
    """
    asked = [i for i, row in enumerate(rows) if row.draw and row.sampling.logprobs is not None]
    out: list[Logprob | None] = [None] * len(rows)
    if asked:
        at = torch.tensor(asked, device=logits.device)
        counts = [rows[i].sampling.logprobs or 0 for i in asked]
        for i, record in zip(asked, _records(logits[at], tokens[at], counts), strict=True):
            out[i] = record
    return out


def of_prompts(
    hidden: Tensor, rows: Sequence[Row], logits_of: Callable[[Tensor], Tensor], vocab_size: int
) -> tuple[tuple[Logprob, ...], ...]:
    """For each row the records of its targets; () if no row has any.

    hidden: (tokens, hidden_size), in batch order. Logits are made for these positions alone.
    """
    if not any(row.draw and row.draw.targets for row in rows):
        return ()
    positions, targets, counts, first = list[int](), list[int](), list[int](), 0
    sizes = []
    for row in rows:
        wanted = row.draw.targets if row.draw else ()
        positions += range(first, first + len(wanted))
        targets += wanted
        counts += [row.sampling.prompt_logprobs or 0] * len(wanted)
        sizes.append(len(wanted))
        first += row.length
    records, block = list[Logprob](), max(1, _BLOCK // vocab_size)
    for i in range(0, len(positions), block):
        at = torch.tensor(positions[i : i + block], device=hidden.device)
        tokens = torch.tensor(targets[i : i + block], device=hidden.device)
        records += _records(logits_of(hidden[at]), tokens, counts[i : i + block])
    each = iter(records)
    return tuple(tuple(next(each) for _ in range(size)) for size in sizes)


def _records(logits: Tensor, tokens: Tensor, counts: Sequence[int]) -> list[Logprob]:
    """One for each row: its token, and the ``counts[row]`` likeliest."""
    scores = logits.float()
    total = scores.logsumexp(-1, keepdim=True)
    mine = scores.gather(1, tokens[:, None])
    ranks = (scores > mine).sum(-1) + 1
    best = scores.topk(min(max(counts), scores.shape[1]), -1)
    columns = (mine - total).squeeze(1), ranks, best.indices, best.values - total
    return [
        Logprob(logprob, rank, tuple(zip(ids[:n], values[:n], strict=True)))
        for logprob, rank, ids, values, n in zip(
            *(column.tolist() for column in columns), counts, strict=True
        )
    ]
