"""What a layer needs of a checkpoint: memory for its part, and that part copied in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from minisgl.kernel.base import Kernels, Matrix


class Part(NamedTuple):
    """The rows of one stored matrix that this rank owns."""

    name: str  # without ".weight"
    total: int  # rows of the stored matrix
    rows: range


class Source(Protocol):
    """Named tensors that are read once, part by part, into memory the layer keeps."""

    kernels: Kernels  # what the layers compute with

    def empty(self, *shape: int) -> Tensor:
        """Uninitialised memory of the model's dtype, on its device. The caller owns it."""
        ...

    def fill(
        self, into: Tensor, name: str, shape: tuple[int, ...], at: tuple[int, ...] | None = None
    ) -> None:
        """Copy into ``into`` the box of its own shape that begins at ``at`` in tensor ``name``.

        shape: what the whole stored tensor must measure. at: the box's first corner; None: zeros.
        Raises ValueError if there is no such tensor or it measures something else.
        """
        ...

    def matrix(self, weight: Tensor, bias: Tensor | None = None, *, rows: bool = False) -> Matrix:
        """Take over a filled weight (outputs, inputs), to multiply with; rows: or to look up."""
        ...

    def linear(
        self, parts: Sequence[Part], inputs: int, columns: range, bias: Tensor | None = None
    ) -> Matrix:
        """Read these parts, stacked, in the form they are stored in: a matrix to multiply with.

        inputs: of the stored matrices; columns: those of them that this rank owns. bias is taken
        over. Raises ValueError where a matrix is not there, measures something else, or is packed
        so that this rank's part cannot be cut out.
        """
        ...
