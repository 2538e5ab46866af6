"""The CUDA kernels agree with their plain twins, run thread by thread in an emulation of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.kernel.base import Kernels
from minisgl.kernel.cuda import CudaKernels
from tests.kernel.agreement import DTYPES, KernelsAgree
from tests.kernel.agreement import pytest_generate_tests as pytest_generate_tests


@pytest.fixture(scope="module")
def kernels(emulated: Callable[[str], Any]) -> Kernels:
    return CudaKernels(emulated("cuda.cu"), device="cpu")


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
        "logits": [(1, 1), (7, 7), (1, 30_001), (2, 5000), (1025, 3)],
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


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_wherever_the_largest_are_the_first_is_chosen(
    emulated: Callable[[str], Any], kernels: Kernels, data: st.DataObject
) -> None:
    """Few large ones in long rows, which several blocks share in any order."""
    draw, dtype = data.draw, data.draw(st.sampled_from(DTYPES))
    rows, size = draw(st.integers(1, 4)), draw(st.integers(1, 9000))
    wide = torch.zeros(rows, size + draw(st.integers(0, 9)), dtype=dtype)
    logits = wide[:, wide.shape[1] - size :]
    value = st.sampled_from([1.0, 2.0, -1.0, torch.inf, -torch.inf, torch.nan])
    places = st.tuples(st.integers(0, rows - 1), st.integers(0, size - 1), value)
    for row, column, number in draw(st.lists(places, max_size=8)):
        logits[row, column] = number
    seed = draw(st.integers(0, 99))
    emulated("cuda.cu")["emulate"](seed, False, False)
    last = torch.full((rows + 1,), -1)
    slots = torch.arange(rows) + 1
    tokens = kernels.choose_greedy(logits, slots, last)
    assert torch.equal(tokens, logits.argmax(-1))
    assert last.tolist() == [-1, *tokens.tolist()]


def test_tokens_of_many_rows_are_chosen_at_once(kernels: Kernels) -> None:
    logits = torch.randn(300, 9).bfloat16()
    last = torch.zeros(300, dtype=torch.int64)
    tokens = kernels.choose_greedy(logits, torch.arange(300), last)
    assert torch.equal(tokens, logits.argmax(-1)) and torch.equal(last, tokens)
