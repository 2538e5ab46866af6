"""All layers for one token in one kernel agree with layer after layer in torch; run on a CPU by an
emulation of a GPU whose five blocks take turns in any order. On a GPU tests/gpu asks the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from minisgl.kernel.cuda import CudaKernels
from minisgl.kernel.marlin import Room
from tests.kernel.one_token import GROUPS, Case, OneToken


@pytest.fixture(scope="module")
def gpu(emulated: Callable[[str], Any]) -> Iterator[Any]:
    """What csrc/megakernel.cu exports, on a CPU, with the shared memory of an H200's block."""
    module = emulated("megakernel.cu")
    module["allow"](227 << 10)
    yield module
    module["forget"]()


@pytest.fixture(scope="module")
def agree(gpu: Any, emulated: Callable[[str], Any]) -> Callable[[Case], None]:
    kernels = CudaKernels(emulated("cuda.cu"))
    room = Room.made(emulated("marlin.cu"), torch.device("cpu"))

    def agree(case: Case) -> None:
        gpu["forget"]()
        OneToken(case, kernels, room, "cpu").agree(gpu)

    return agree


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("eager", [False, True], ids=["late copies", "eager copies"])
def test_a_token_through_all_layers(
    gpu: Any, agree: Callable[[Case], None], group: int, eager: bool
) -> None:
    gpu["emulate"](3, eager)
    agree(replace(Case(), group=group))
