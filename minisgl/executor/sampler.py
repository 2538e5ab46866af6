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

_FEW: Final = 1024  # logits that nearly every nucleus lies in
_PENALTIES: Final = ("repetition_penalty", "presence_penalty", "frequency_penalty")
_NUMBERS: Final = attrgetter("temperature", "top_k", "top_p", "min_p", *_PENALTIES)


def choose(logits: Tensor, rows: Sequence[Row], penalties: Penalties, staging: Staging) -> Tensor:
    """Each row's next token: (rows,) int64 on the logits' device. Notes it where penalties count.

    logits: (rows, vocab_size), left as they are. Greedy rows take the first of the largest.
    """
    draws = [row.draw for row in rows]
    if not any(draws):
        return _largest(logits)
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
    where, which, added, penalised, history, *weights, drawn, key, t, k, p, m, narrow, wide = (
        staging.send(
            *_biases(rows, at),
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
            np.flatnonzero(~narrowed[random]),
        )
    )
    scores = logits
    if len(where) or len(penalised):
        scores = logits.float().clone()
    if len(where):
        scores[where, which] += _floats(added)
    if len(penalised):
        scores[penalised] = penalties.applied(scores[penalised], history, *map(_floats, weights))
    tokens = _largest(scores)
    if len(drawn):
        warm = scaled(scores[drawn], _floats(t))
        least = _floats(m).log()[:, None]  # of the kept: the largest is 0
        if len(wide):
            tokens[drawn[wide]] = draw(warm[wide], least[wide], key[wide])
        if len(narrow):
            limits = k[narrow], _floats(p)[narrow], least[narrow]
            # to look whether the largest are enough would be to wait for a GPU
            width = vocab_size if logits.is_cuda else _FEW
            tokens[drawn[narrow]] = draw_few(warm[narrow], key[narrow], *limits, width)
    if len(penalised):
        penalties.note(history, tokens[penalised])
    return tokens


def scaled(logits: Tensor, temperature: Tensor) -> Tensor:
    """logits / temperature in float32, moved so that each row's largest is 0: nothing overflows."""
    x = logits.float()
    return (x - x.amax(-1, keepdim=True)) / temperature[:, None]


def draw(logits: Tensor, least: Tensor, keys: Tensor, ids: Tensor | None = None) -> Tensor:
    """A column drawn from the softmax of each row's logits that are ``least`` or more: (rows,).

    logits: (rows, n); least: (rows, 1); keys: (rows,). ids: (rows, n), the tokens that the columns
    stand for; None: each its own number.
    """
    if ids is None:
        ids = torch.arange(logits.shape[1], device=logits.device)
    return gumbel(keys, ids).add_(logits).masked_fill_(logits < least, -torch.inf).argmax(-1)


def draw_few(
    logits: Tensor,
    keys: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    least: Tensor,
    width: int = _FEW,
) -> Tensor:
    """The same from no more than the ``top_k`` largest logits and from their nucleus.

    Usually these are among the ``width`` largest, and only those are ordered and get noise. Rows
    for which they are not order all their logits; that changes no token.
    """
    vocab_size, total = logits.shape[1], logits.logsumexp(-1)
    few, ids = logits.topk(min(width, vocab_size))
    width = few.shape[1]
    kept = torch.maximum(least, least_kept(few, total, top_k, top_p))
    tokens = ids.gather(1, draw(few, kept, keys, ids)[:, None]).squeeze(1)
    if width == vocab_size:
        return tokens
    last = few.gather(1, top_k.clamp(max=width)[:, None] - 1)  # equals of it may lie outside
    known = (few[:, -1:] < last) | (top_k == vocab_size)[:, None]
    many = (~known | (few[:, -1:] >= kept)).squeeze(1).nonzero().squeeze(1)
    if len(many):
        x, limits = logits[many], (total[many], top_k[many], top_p[many])
        kept = torch.maximum(least[many], least_kept(x.sort(-1, True).values, *limits))
        tokens[many] = draw(x, kept, keys[many])
    return tokens


def least_kept(ordered: Tensor, total: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The smallest logit that each row keeps: (rows, 1). Logits equal to it are kept, too.

    ordered: (rows, n), a row's n largest logits, descending. total: (rows,), log of the sum of the
    exponentials of all its logits. top_k: (rows,) int64, from 1; n or less, or all there are.
    top_p: (rows,). Source of the nucleus: Holtzman et al. 2020, sec. 3.1.
    """
    n = ordered.shape[1]
    least = ordered.gather(1, top_k.clamp(max=n)[:, None] - 1)
    inside = ordered.masked_fill(ordered < least, -torch.inf)
    inside = inside.double()  # so that no rounding decides how far the nucleus reaches
    total = torch.where(top_k <= n, inside.logsumexp(-1), total)
    probabilities = (inside - total[:, None]).exp()
    before = probabilities.cumsum(-1) - probabilities  # the probability of all that is likelier
    # rounded sums reach 1 early, so a top_p of 1 is not compared
    kept = ((before < top_p[:, None]) | (top_p[:, None] >= 1)).sum(-1, keepdim=True).clamp_(min=1)
    return torch.maximum(least, ordered.gather(1, kept - 1))


def _largest(logits: Tensor) -> Tensor:
    """The first of each row's largest. numpy takes 0.4 ms for 64 rows of 32000, torch 2.5."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.argmax(-1)


def _biases(rows: Sequence[Row], at: Ints) -> tuple[Ints, Ints, Ints]:
    """What is added to single logits of these rows: the row, the token, the number's bits."""
    found = [(i, token, bias) for i in at.tolist() for token, bias in rows[i].sampling.biases]
    row, token, bias = zip(*found, strict=True) if found else ((), (), ())
    return np.array(row, np.int64), np.array(token, np.int64), _bits(np.array(bias))


def _bits(numbers: npt.NDArray[Any]) -> Ints:
    """The bits of float64 numbers, so that they travel with the integers."""
    return np.ascontiguousarray(numbers, np.float64).view(np.int64)


def _floats(bits: Tensor) -> Tensor:
    return bits.view(torch.float64).float()
