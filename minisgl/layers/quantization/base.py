"""From a weight as it was read to the form in which it is multiplied."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from minisgl.kernel.base import Kernels, Matrix
from minisgl.kernel.int4 import Int4


class Quantization(Protocol):
    """Chosen once for a model; every matrix goes through it as soon as it is read."""

    def __call__(
        self, kernels: Kernels, weight: Tensor | Int4, bias: Tensor | None, *, rows: bool
    ) -> Matrix:
        """Take over weight: (outputs, inputs) and bias: (outputs,). rows: it is an embedding too,
        and no ``Int4``.

        Raises ValueError for a weight that this form cannot hold.
        """
        ...
