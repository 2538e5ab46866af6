"""The CUDA kernels agree with their plain twins, run thread by thread in an emulation of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch

from minisgl.kernel.base import Kernels
from minisgl.kernel.cuda import CudaKernels
from tests.kernel.agreement import DTYPES, KernelsAgree
from tests.kernel.agreement import pytest_generate_tests as pytest_generate_tests


@pytest.fixture(scope="module")
def kernels(emulated: Callable[[str], Any]) -> Kernels:
    return CudaKernels(emulated("cuda.cu"))


class TestEmulated(KernelsAgree):
    """Few and small ones: a thread takes a microsecond for what a GPU does in a nanosecond."""

    device = "cpu"
    values: ClassVar[dict[str, list[Any]]] = {
        "dtype": DTYPES,
        "rows": [1, 7],
        "size": [8, 264, 1024, 16384],
        "shape": [(96, 2048), (300, 264), (5, 8)],
        "sides": [(21, 2048), (61, 264), (5, 8), (12, 20), (3, 16_392)],
        "inner": [8, 3072],
    }


def test_a_product_reads_no_further_than_its_weight(emulated: Callable[[str], Any]) -> None:
    """A tensor in the middle of others: what lies behind it is not fetched."""
    module = emulated("cuda.cu")
    weight, x = torch.randn(7, 24).half(), torch.randn(2, 24).half()
    out = torch.empty(2, 7, dtype=torch.float16)
    module["product"](x, weight, None, out)
    torch.testing.assert_close(out, x @ weight.t(), atol=1e-2, rtol=1e-2)


def test_outputs_that_blocks_cannot_hold_at_once_come_in_waves(kernels: Kernels) -> None:
    weight, x = torch.randn(1300, 16), torch.randn(1, 16)
    out = kernels.matrix(weight, None, half=False, rows=False)(x)
    torch.testing.assert_close(out, x @ weight.t())
