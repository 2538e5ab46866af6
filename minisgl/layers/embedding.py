"""The token embedding and the output head, each rank holding a run of the vocabulary."""

from __future__ import annotations

from torch import Tensor

from minisgl.distributed.group import Group
from minisgl.layers.source import Source


class VocabMatrix:
    """A (vocab_size, hidden_size) matrix, read as rows (embedding) or multiplied (output head).

    One object is both where the model ties them. Ranks hold equally many rows; where the vocabulary
    does not divide, the last ones are padded with zeros, and the padding never leaves this class.
    """

    def __init__(
        self, source: Source, name: str, vocab_size: int, hidden_size: int, group: Group
    ) -> None:
        rows = -(-vocab_size // group.size)
        self._first = min(group.rank * rows, vocab_size)
        here = min(rows, vocab_size - self._first)
        weight = source.empty(rows, hidden_size)
        weight[here:] = 0
        if here:
            whole = (vocab_size, hidden_size)
            source.fill(weight[:here], f"{name}.weight", whole, (self._first, 0))
        self.matrix = source.matrix(weight, rows=True)
        self._vocab_size, self._group = vocab_size, group

    def embed(self, ids: Tensor) -> Tensor:
        """ids: (tokens,). Returns (tokens, hidden_size), a tensor the caller may write to."""
        if self._group.size == 1:
            return self.matrix.rows(ids)
        local = ids - self._first
        elsewhere = (local < 0) | (local >= self.matrix.shape[0])
        x = self.matrix.rows(local.masked_fill(elsewhere, 0))
        return self._group.all_reduce(x.masked_fill_(elsewhere[:, None], 0))

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (rows, hidden_size). Returns (rows, vocab_size) on every rank."""
        return self._group.all_gather(self.matrix(hidden))[:, : self._vocab_size]
