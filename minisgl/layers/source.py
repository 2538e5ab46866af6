"""What a layer needs of a checkpoint: memory for its part, and that part copied in."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from minisgl.kernel.base import Kernels, Matrix


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
