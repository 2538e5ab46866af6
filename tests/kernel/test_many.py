"""Products of many tokens are right, run on a CPU by an emulation of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.kernel.base import Kernels
from minisgl.kernel.cuda import CudaKernels
from minisgl.kernel.many import Tiles, products_on, tiles_for
from tests.kernel.agreement import ManyTokensAgree
from tests.kernel.agreement import pytest_generate_tests as pytest_generate_tests

ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-8}  # of a result, to its size


@pytest.fixture(scope="module")
def gpu(emulated: Callable[[str], Any]) -> Any:
    """What csrc/many.cu exports, on a CPU."""
    return emulated("many.cu")


@pytest.fixture
def launched() -> list[bool]:
    return []


@pytest.fixture
def kernels(emulated: Callable[[str], Any], gpu: Any, launched: list[bool]) -> Kernels:
    def multiply(*given: Any) -> None:
        launched.append(given[4])
        gpu["multiply"](*given)

    return CudaKernels(emulated("cuda.cu"), {"multiply": multiply}, "cpu")


class TestEmulated(ManyTokensAgree):
    """A few of each kind of tiles, and of what has none."""

    device = "cpu"
    values: ClassVar[dict[str, list[Any]]] = {
        "dtype": [torch.bfloat16, torch.float16],
        "tokens": [3, 5, 17, 65, 129],
        "sides": [(24, 264), (80, 64), (2064, 24), (40, 20)],
    }


def test_numbers_of_32_bits_are_left_to_others(kernels: Kernels, launched: list[bool]) -> None:
    weight, x = torch.randn(16, 8), torch.randn(5, 8)
    got = kernels.matrix(weight, None, half=False, rows=False)(x)
    torch.testing.assert_close(got, x @ weight.t())
    assert launched == []


QKV, OUT, GATE_UP, DOWN = (4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)  # Qwen3 0.6B


@pytest.mark.parametrize(
    ("tokens", "shape", "gated", "tiles"),
    [
        (4, QKV, False, None),
        (5, QKV, False, Tiles(64, 1)),
        (16, QKV, False, Tiles(64, 1)),
        (17, QKV, False, Tiles(48, 1)),
        (64, QKV, False, Tiles(48, 1)),
        (65, QKV, False, None),
        (5, OUT, False, Tiles(64, 4)),
        (128, DOWN, False, Tiles(64, 4)),
        (129, DOWN, False, None),
        (128, GATE_UP, True, Tiles(48, 1)),
        (129, GATE_UP, True, None),
        (64, (4096, 4096), False, None),  # 8B
        (64, (24_576, 4096), True, None),
        (8, (64, 72), True, Tiles(64, 2)),
    ],
    ids=str,
)
def test_which_products_are_taken(
    tokens: int, shape: tuple[int, int], gated: bool, tiles: Tiles | None
) -> None:
    assert tiles_for(tokens, shape, gated) == tiles


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (10, 0), (12, 0)], ids=str)
def test_other_gpus_are_not_compiled_for(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile(*given: Any, **more: Any) -> None:
        raise AssertionError("the compiler is called")

    monkeypatch.setattr("minisgl.kernel.many.load_cuda", compile)
    products_on.cache_clear()
    assert products_on(capability) is None


def test_where_they_cannot_be_compiled_others_multiply(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("PATH", "CUDA_HOME", "CUDA_PATH", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("minisgl.kernel.compile.SOURCES", tmp_path)
    products_on.cache_clear()
    assert products_on((9, 0)) is None
    products_on.cache_clear()


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.sampled_from([1, 5, 17, 63, 64, 65, 130]),
    outputs=st.integers(1, 12),
    inputs=st.sampled_from([8, 64, 72, 640, 1000]),
    gated=st.booleans(),
    wide=st.sampled_from([48, 64]),
    parts=st.integers(1, 4),
    dtype=st.sampled_from(list(ROUNDING)),
    biased=st.booleans(),
    eager=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 99),
)
def test_the_product_is_that_of_the_numbers_however_it_is_shared(
    gpu: Any,
    tokens: int,
    outputs: int,
    inputs: int,
    gated: bool,
    wide: int,
    parts: int,
    dtype: torch.dtype,
    biased: bool,
    eager: tuple[bool, bool],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    rows, shared = outputs * 8 * (1 + gated), (wide, min(parts, -(-inputs // 64)))
    x = torch.randn(tokens, inputs).to(dtype)
    weight = (torch.randn(rows, inputs) / inputs**0.5).to(dtype)
    bias = torch.randn(rows).to(dtype) if biased else None
    around = torch.full((tokens + 4, outputs * 8), -7.0).to(dtype)
    gpu["emulate"](seed, *eager)
    gpu["late"](x)
    gpu["multiply"](x, weight, bias, around[2:-2], gated, *shared)
    exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    if gated:
        gate, up = exact.to(dtype).double().chunk(2, -1)
        exact = torch.nn.functional.silu(gate) * up
    got = around[2:-2].clone()
    assert (got.double() - exact).norm() <= 2 * ROUNDING[dtype] * exact.norm()
    assert (around[:2] == -7).all() and (around[-2:] == -7).all()
    gpu["emulate"](seed + 1, not eager[0], eager[1])
    gpu["multiply"](x, weight, bias, around[2:-2], gated, *shared)
    assert torch.equal(around[2:-2], got), "sums are added in one order"
