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
from minisgl.kernel.megakernel import Megakernel
from minisgl.kernel.plain import PlainMatrix
from tests.kernel.one_token import GROUPS, Case, OneToken

BLOCK = 227 << 10  # shared memory of an H200's block
BF16, FP16 = torch.bfloat16, torch.float16
SMALL = Case(layers=1, hidden=128, inner=128, heads=2, kv_heads=1)

# name, case, order of threads, copies that happen at once
CASES: list[tuple[str, Case, int, bool]] = [
    (
        "the first position, an inner row of one chunk and a bit",
        replace(SMALL, dtype=FP16, inner=640, seen=1, page_size=1, normed=False, biased=True),
        1,
        False,
    ),
    (
        "five queries a key, several splits",
        replace(SMALL, group=32, head_dim=128, heads=10, kv_heads=2, seen=300, page_size=4),
        2,
        False,
    ),
    (
        "a split whose last batch reaches beyond it, to the newest position",
        replace(SMALL, seen=641),
        1,
        False,
    ),
    (
        "a query a key, groups of 64, three chunks",
        replace(SMALL, group=64, dtype=FP16, hidden=384, kv_heads=2, seen=17, biased=True),
        3,
        True,
    ),
    (
        "blocks without tiles, a window",
        replace(SMALL, group=128, layers=3, seen=700, page_size=4, window=150),
        4,
        False,
    ),
    (
        "several splits of several batches, a window that is not full",
        replace(SMALL, layers=2, heads=4, kv_heads=2, seen=700, window=1000),
        5,
        True,
    ),
    (
        "five chunks, a window of one",
        replace(SMALL, dtype=FP16, hidden=640, head_dim=128, heads=5, seen=17, window=1),
        6,
        False,
    ),
    (
        "warps without chunks next to warps with two",
        replace(SMALL, group=128, dtype=FP16, inner=1152, normed=False, seen=40, page_size=1),
        7,
        True,
    ),
    (
        "a row of the residual stream that is not spread",
        replace(SMALL, group=128, layers=2, hidden=3200, seen=9),
        8,
        False,
    ),
    (
        "an input ten thousand times as large as its neighbours, groups of 32",
        replace(SMALL, group=32, biased=True, outlier=1e4, seen=9),
        9,
        False,
    ),
    (
        "an input ten thousand times as large as its neighbours, groups of 128",
        replace(SMALL, group=128, biased=True, outlier=1e4, seen=9, dtype=FP16),
        10,
        False,
    ),
]


@pytest.fixture(scope="module")
def gpu(emulated: Callable[[str], Any]) -> Iterator[Any]:
    """What csrc/megakernel.cu exports, on a CPU, with the shared memory of an H200's block."""
    module = emulated("megakernel.cu")
    module["allow"](BLOCK)
    yield module
    module["forget"]()


@pytest.fixture(scope="module")
def made(gpu: Any, emulated: Callable[[str], Any]) -> Callable[[Case], OneToken]:
    kernels = CudaKernels(emulated("cuda.cu"), device="cpu")
    room = Room.made(emulated("marlin.cu"), torch.device("cpu"))

    def made(case: Case) -> OneToken:
        gpu["forget"]()
        return OneToken(case, kernels, room, "cpu")

    return made


Made = Callable[[Case], OneToken]


@pytest.mark.parametrize(
    ("case", "seed", "eager"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_token_through_all_layers(
    gpu: Any, made: Made, case: Case, seed: int, eager: bool
) -> None:
    gpu["emulate"](seed, eager, eager)
    made(case).agree(gpu, calls=1)


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("eager", [False, True], ids=["late copies", "eager copies"])
@pytest.mark.parametrize("seed", range(3))
def test_a_token_through_all_layers_in_any_order(
    gpu: Any, made: Made, group: int, eager: bool, seed: int
) -> None:
    gpu["emulate"](seed, eager, eager)
    made(replace(Case(), group=group, seed=seed, layers=1 + seed)).agree(gpu)


@pytest.mark.slow
@pytest.mark.parametrize("group", [0, 32, 64, 128])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize(
    ("head_dim", "heads", "seen", "window"),
    [(128, 2, 1, None), (64, 10, 17, 5), (128, 10, 300, None), (64, 4, 700, 513)],
)
def test_all_forms_of_numbers_and_heads(
    gpu: Any,
    made: Made,
    group: int,
    dtype: torch.dtype,
    head_dim: int,
    heads: int,
    seen: int,
    window: int | None,
) -> None:
    gpu["emulate"](seen, heads == 4, False)
    numbers = replace(SMALL, group=group, dtype=dtype, biased=heads == 10, normed=heads != 2)
    row = replace(numbers, head_dim=head_dim, heads=heads, kv_heads=2, seen=seen, window=window)
    made(row).agree(gpu, calls=1)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_number_that_is_none_is_not_lost(gpu: Any, made: Made, group: int, number: float) -> None:
    gpu["emulate"](11, False, False)
    token = made(replace(SMALL, group=group, seen=1))
    assert token.result_with(number, gpu).isnan().all()


@pytest.mark.parametrize("group", [0, 128])
def test_calls_one_after_the_other_do_not_see_each_others_numbers(
    gpu: Any, made: Made, group: int
) -> None:
    gpu["emulate"](8, False, False)
    token = made(replace(SMALL, group=group, seen=300))
    whole = Megakernel.of(token.layers, token.case.shape, gpu)
    token.agree(gpu, 2, whole)  # the same again: equal results
    token.draw(20)  # fewer splits: what they hand over is left from before
    token.agree(gpu, 1, whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 80, "heads": 8},
        {"hidden": 192},
        {"inner": 192},
        {"dtype": torch.float32},
        {"heads": 6, "kv_heads": 6},  # more than there are blocks
        {"hidden": 8320},
    ],
    ids=str,
)
def test_sizes_that_the_kernel_does_not_have_are_computed_without(
    gpu: Any, made: Made, changes: dict[str, Any]
) -> None:
    token = made(replace(SMALL, **changes))
    assert Megakernel.of(token.layers, token.case.shape, gpu) is None


def test_matrices_of_other_forms_are_computed_without(gpu: Any, made: Made) -> None:
    numbers, packed = (made(replace(SMALL, group=group)).layers[0] for group in (0, 128))
    other = made(replace(SMALL, group=32)).layers[0]
    plain = PlainMatrix(torch.zeros(128, 128, dtype=BF16), None)
    for layers in (
        [numbers, packed],
        [packed, other],
        [packed._replace(down=numbers.down)],
        [numbers._replace(o=plain)],
        [numbers._replace(qkv=plain, o=plain, gate_up=plain, down=plain)],
    ):
        assert Megakernel.of(layers, SMALL.shape, gpu) is None
    for layer in (numbers, packed, other):
        assert Megakernel.of([layer, layer], SMALL.shape, gpu) is not None


@pytest.mark.parametrize("group", GROUPS)
def test_with_too_little_shared_memory_there_is_no_such_kernel(
    gpu: Any, made: Made, group: int
) -> None:
    token = made(replace(SMALL, group=group))
    gpu["allow"](99 << 10)  # as much as smaller GPUs have
    try:
        assert Megakernel.of(token.layers, token.case.shape, gpu) is None
    finally:
        gpu["allow"](BLOCK)
