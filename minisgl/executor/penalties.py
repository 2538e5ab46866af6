"""Which tokens a request has used, for the few requests whose penalties depend on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

History = tuple[Sequence[int], Sequence[int]]  # prompt, output


class Penalties:
    """Per slot: the tokens of the prompt, and how often each token was sampled since.

    A row of memory is taken when a slot's request first has penalties, and kept for the slot.
    in_prompt: (rows, vocab_size) bool; counts: (rows, vocab_size) int32. The one writer is the
    thread that computes batches.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rows: dict[int, int] = {}  # slot -> row
        self._in_prompt = torch.zeros(0, 0, dtype=torch.bool, device=device)
        self._counts = torch.zeros(0, 0, dtype=torch.int32, device=device)

    def begin(self, slot: int, history: History, vocab_size: int) -> None:
        """A request with this past takes over a slot."""
        prompt, output = history
        row = self._rows.setdefault(slot, len(self._rows))
        if row >= len(self._counts):
            grown = torch.Size((max(1, 2 * row), vocab_size))
            self._in_prompt = _grow(self._in_prompt, grown)
            self._counts = _grow(self._counts, grown)
        self._in_prompt[row] = False
        self._in_prompt[row, torch.tensor(prompt, device=self._device)] = True
        past = torch.tensor(output, dtype=torch.int64, device=self._device)
        self._counts[row] = past.bincount(minlength=vocab_size)

    def rows(self, slots: Sequence[int]) -> list[int]:
        """The rows of slots that have begun."""
        return [self._rows[slot] for slot in slots]

    def note(self, rows: Tensor, tokens: Tensor) -> None:
        """Count a sampled token for each of these rows. Both (n,) int64."""
        self._counts[rows, tokens] += 1

    def applied(
        self, logits: Tensor, rows: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor
    ) -> Tensor:
        """logits: (n, vocab_size); the rest (n,). Returns float32 of the same shape as logits."""
        scores, counts = logits.float(), self._counts[rows]
        used = counts > 0
        factor = torch.where(self._in_prompt[rows] | used, repetition[:, None], 1.0)
        scores = torch.where(scores > 0, scores / factor, scores * factor)
        return scores - presence[:, None] * used - frequency[:, None] * counts

    def copy_(self, other: Penalties) -> None:
        """Take over all that another knows."""
        self._rows = dict(other._rows)
        self._in_prompt, self._counts = other._in_prompt.clone(), other._counts.clone()

    @property
    def num_bytes(self) -> int:
        """The memory it takes."""
        return self._in_prompt.nbytes + self._counts.nbytes


def _grow(table: Tensor, shape: torch.Size) -> Tensor:
    grown = table.new_zeros(shape)
    grown[: len(table), : table.shape[1]] = table
    return grown
