"""From logits to tokens. Rows that want the same treatment are treated together."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minisgl.attention.base import Ints
from minisgl.core import Row
from minisgl.executor.noise import gumbel, row_keys
from minisgl.executor.penalties import Penalties
from minisgl.executor.tables import Staging
from minisgl.sampling import GREEDY_BELOW

_PENALTIES: Final = ("repetition_penalty", "presence_penalty", "frequency_penalty")
_NUMBERS: Final = attrgetter("temperature", "top_k", "top_p", "min_p", *_PENALTIES)


def choose(logits: Tensor, rows: Sequence[Row], penalties: Penalties, staging: Staging) -> Tensor:
    """Each row's next token: (rows,) int64 on the logits' device. Notes it where penalties count.

    logits: (rows, vocab_size), left as they are. Greedy rows take the first of the largest.
    """
    draws = [row.draw for row in rows]
    if not any(draws):
        return logits.argmax(-1)
    vocab_size = logits.shape[1]
    at = np.array([i for i, draw in enumerate(draws) if draw is not None])
    numbers = np.array([_NUMBERS(rows[i].sampling) for i in at], np.float64)
    temperature, top_k, top_p, min_p = numbers[:, :4].T
    used = (numbers[:, 4:] != (1, 0, 0)).any(1)
    random = temperature >= GREEDY_BELOW
    top_k = np.where(top_k < 0, vocab_size, np.minimum(top_k, vocab_size)).astype(np.int64)
    narrowed = (top_k < vocab_size) | (top_p < 1)
    chosen = [draw for draw in draws if draw is not None]
    keys = row_keys(
        np.array([draw.seed for draw in chosen], np.int64),
        np.array([draw.made for draw in chosen], np.int64),
    )
    penalised, history, *weights, drawn, key, t, k, p, m, narrow = staging.send(
        at[used],
        np.array(penalties.rows([rows[i].slot for i in at[used]]), np.int64),
        *(_bits(column) for column in numbers[used, 4:].T),
        at[random],
        keys[random],
        _bits(temperature[random]),
        top_k[random],
        _bits(top_p[random]),
        _bits(min_p[random]),
        np.flatnonzero(narrowed[random]),
    )
    scores = logits
    if len(penalised):
        scores = logits.float().clone()
        scores[penalised] = penalties.applied(logits[penalised], history, *map(_floats, weights))
    tokens = scores.argmax(-1)
    if len(drawn):
        warm = scaled(scores[drawn], _floats(t))
        if len(narrow):
            warm[narrow] = narrowed_to(warm[narrow], k[narrow], _floats(p)[narrow])
        warm.masked_fill_(warm < _floats(m).log()[:, None], -torch.inf)  # the largest is 0
        tokens[drawn] = warm.add_(gumbel(key, vocab_size)).argmax(-1)
    if len(penalised):
        penalties.note(history, tokens[penalised])
    return tokens


def scaled(logits: Tensor, temperature: Tensor) -> Tensor:
    """logits / temperature in float32, moved so that each row's largest is 0: nothing overflows."""
    x = logits.float()
    return (x - x.amax(-1, keepdim=True)) / temperature[:, None]


def narrowed_to(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Logits outside the ``top_k`` largest, or their nucleus, are -inf. Equals stay together.

    logits: (rows, vocab_size); top_k: (rows,) int64, 1 to vocab_size; top_p: (rows,).
    Source of the nucleus: Holtzman et al. 2020, sec. 3.1.
    """
    ordered = logits.sort(-1, descending=True).values
    least = ordered.gather(1, top_k[:, None] - 1)
    inside = ordered.masked_fill(ordered < least, -torch.inf).softmax(-1)
    before = inside.cumsum(-1) - inside  # the probability of all that is likelier
    # rounded sums reach 1 early, so a top_p of 1 is not compared
    kept = ((before < top_p[:, None]) | (top_p[:, None] >= 1)).sum(-1, keepdim=True).clamp_(min=1)
    least = torch.maximum(least, ordered.gather(1, kept - 1))
    return logits.masked_fill(logits < least, -torch.inf)


def _bits(numbers: npt.NDArray[Any]) -> Ints:
    """The bits of float64 numbers, so that they travel with the integers."""
    return np.ascontiguousarray(numbers, np.float64).view(np.int64)


def _floats(bits: Tensor) -> Tensor:
    return bits.view(torch.float64).float()
