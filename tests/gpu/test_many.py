"""Products of many tokens agree with torch's, as they are launched on a GPU that has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch

from minisgl.kernel.base import Kernels
from minisgl.kernel.compile import load_cuda
from minisgl.kernel.cuda import CudaKernels
from minisgl.resolve import WARPGROUPS
from tests.kernel.agreement import ManyTokensAgree
from tests.kernel.agreement import pytest_generate_tests as pytest_generate_tests

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def modules() -> tuple[Any, Any]:
    """What csrc/cuda.cu and csrc/many.cu export."""
    if torch.cuda.get_device_capability() != WARPGROUPS:
        pytest.skip(f"needs a GPU of compute capability {WARPGROUPS}")
    return load_cuda(WARPGROUPS), load_cuda(WARPGROUPS, source="many.cu")


@pytest.fixture
def launched() -> list[bool]:
    return []


@pytest.fixture
def kernels(modules: tuple[Any, Any], launched: list[bool]) -> Iterator[Kernels]:
    module, many = modules

    def multiply(*given: Any) -> None:
        launched.append(given[4])
        many["multiply"](*given)

    yield CudaKernels(module, {"multiply": multiply})
    torch.cuda.synchronize()


class TestOnAGpu(ManyTokensAgree):
    """The matrices of Qwen3 0.6B, and others."""

    device = "cuda"
    values: ClassVar[dict[str, list[Any]]] = {
        "dtype": [torch.bfloat16, torch.float16],
        "tokens": [5, 16, 17, 63, 64, 65, 128, 129],
        "sides": [(4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072), (24, 264), (2576, 72)],
    }


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("wide", [48, 64])
@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_sums_do_not_depend_on_who_is_first(
    modules: tuple[Any, Any], gated: bool, wide: int, parts: int
) -> None:
    x, weight = (torch.randn(n, 1000, device="cuda").half() for n in (100, 976))
    outs = [torch.zeros(100, 976 // (1 + gated), device="cuda").half() for _ in range(20)]
    for out in outs:  # one after the other, without a break
        modules[1]["multiply"](x, weight, None, out, gated, wide, parts)
    exact = x.double() @ weight.double().t()
    if gated:
        gate, up = exact.chunk(2, -1)
        exact = torch.nn.functional.silu(gate) * up
    assert (outs[0] - exact).norm() < 2e-3 * exact.norm()
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_a_captured_chain_of_products_follows_what_its_inputs_become(kernels: Kernels) -> None:
    """Each begins while the one before still runs; sums and inputs use the same memory again."""
    wide, narrow = (
        (torch.randn(*sides, device="cuda") / sides[1] ** 0.5).bfloat16()
        for sides in ((6144, 1024), (1024, 3072))
    )
    ours = [kernels.matrix(w, None, half=False, rows=False) for w in (wide, narrow)]
    norm, x = torch.ones(1024, device="cuda").bfloat16(), torch.zeros(40, 1024, device="cuda")
    x = x.bfloat16()

    def chain() -> torch.Tensor:
        y, total = x.clone(), torch.zeros_like(x)
        for _ in range(8):
            active, total = kernels.normed_gated_product(ours[0], y, total, norm, 1e-6)
            y = ours[1](active)
        return y + total

    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        chain()
        graph.capture_begin()
        out = chain()
        graph.capture_end()
        for seed in range(3):
            torch.manual_seed(seed)
            x.copy_(torch.randn_like(x))
            graph.replay()
            y, total = x.double(), torch.zeros_like(x).double()
            for _ in range(8):
                total = total + y
                normed = torch.nn.functional.rms_norm(total, (1024,), None, 1e-6)
                gate, up = (normed @ wide.double().t()).chunk(2, -1)
                y = (torch.nn.functional.silu(gate) * up) @ narrow.double().t()
            exact = total + y
            assert (out - exact).norm() < 2e-2 * exact.norm()
    torch.cuda.synchronize()
