"""Every "auto" is resolved once, by a pure function, which can say why."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest

from minisgl.config import EngineConfig
from minisgl.resolve import (
    Hardware,
    ModelFacts,
    gpu_attention,
    may_take_decode_kernels,
    no_megakernel,
    resolve,
)

LAPTOP = Hardware(cores=4, memory=8 << 30)
SERVER = Hardware(cores=16, memory=128 << 30, gpus=("H200",), gpu_memory=140 << 30)
BYTES = {"float32": 4096, "float16": 2048, "bfloat16": 2048}
TINY = ModelFacts(4096, 4_000_000, BYTES, "float16", 4, 2, 512)
LARGE = TINY._replace(num_parameters=8_000_000_000, context=131072, stored_dtype="bfloat16")


def resolved(hardware: Hardware = LAPTOP, model: ModelFacts = TINY, **toggles: Any) -> EngineConfig:
    return resolve(EngineConfig(**toggles), hardware, {}, model)


@pytest.mark.parametrize("hardware", [LAPTOP, SERVER])
@pytest.mark.parametrize("model", [TINY, LARGE])
def test_nothing_is_auto_once_resolved(hardware: Hardware, model: ModelFacts) -> None:
    config = resolved(hardware, model)
    assert not [option.name for option in fields(config) if getattr(config, option.name) == "auto"]
    assert config.limits.num_pages == config.num_pages
    assert resolve(config, hardware, {}, model) == config


def test_a_laptop_computes_in_float32_and_a_small_model_on_one_thread() -> None:
    config = resolved()
    assert (config.device, config.dtype, config.threads) == ("cpu", "float32", 1)
    assert resolved(model=LARGE).threads == 4


def test_the_pool_takes_a_quarter_of_the_memory_at_most() -> None:
    config = resolved(model=LARGE)
    assert config.limits.num_pages * 16 * 4096 <= (8 << 30) // 4
    assert config.limits.max_seq_len == 131072
    small = resolved(Hardware(1, 64 << 20), LARGE)
    assert small.limits.max_seq_len == 64 * 1024 * 1024 // 4 // 4096


def test_the_context_is_clamped_to_the_pool() -> None:
    assert resolved(num_pages=10, page_size=16).max_seq_len == 160
    assert resolved(num_pages=10, page_size=16, max_seq_len=4000).max_seq_len == 160


def test_without_chunks_a_step_takes_a_prompt_of_any_length() -> None:
    assert resolved(chunked_prefill=False).max_step_tokens == 4096
    assert resolved().max_step_tokens == 512


def test_the_environment_turns_overlap_off() -> None:
    environment = {"MINISGL_DISABLE_OVERLAP_SCHEDULING": "1"}
    assert resolve(EngineConfig(), LAPTOP, environment, TINY).overlap is False
    environment = {"MINISGL_DISABLE_OVERLAP_SCHEDULING": "0"}
    assert resolve(EngineConfig(), LAPTOP, environment, TINY).overlap is True


@pytest.mark.parametrize(
    ("toggles", "says"),
    [
        ({"max_seq_len": 10**6}, "made for 4096 positions"),
        ({"num_pages": 10**6}, "need 65536000000 bytes, 8589934592 are free; lower"),
        ({"device": "cuda"}, "torch sees no GPU here; use device='cpu'"),
        (
            {"tp": 3},
            "tp=3 was asked; the model's 4 attention heads, 2 key/value heads and 512 MLP columns "
            "can be shared evenly by tp=1, 2, 4",
        ),
        ({"tp": 2, "runner": "hash"}, "runner='hash' is one process, use tp=1"),
    ],
)
def test_a_value_that_machine_or_model_cannot_have_is_refused(
    toggles: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        resolved(**toggles)


def test_no_room_for_a_page_says_how_much_one_needs() -> None:
    with pytest.raises(ValueError, match="a KV page of 16 positions needs 65536 bytes; 1000 are"):
        resolved(Hardware(1, 1000))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "columns", "tps"),
    [(4, 2, 512, [1, 2, 4]), (12, 4, 96, [1, 2, 4, 12]), (6, 3, 4, [1]), (14, 2, 4864, [1, 2])],
)
def test_a_model_is_shared_by_as_many_ranks_as_divide_it(
    heads: int, kv_heads: int, columns: int, tps: list[int]
) -> None:
    model = TINY._replace(num_heads=heads, num_kv_heads=kv_heads, intermediate_size=columns)
    assert [tp for tp in range(1, 40) if model.can_be_shared(tp)] == tps


def test_ranks_beyond_the_key_heads_hold_copies_that_the_memory_must_hold_too() -> None:
    model = LARGE._replace(num_heads=8, num_kv_heads=2, intermediate_size=512)
    pages = [resolved(model=model, tp=tp).limits.num_pages for tp in (1, 2, 4, 8)]
    assert pages == [pages[0], pages[0], pages[0] // 2, pages[0] // 4]
    with pytest.raises(ValueError, match=f"need {pages[0] * 16 * 4 * 16384} bytes"):
        resolved(model=model, tp=8, num_pages=pages[0] * 4)


def test_each_rank_needs_a_gpu_which_then_holds_more_pages() -> None:
    with pytest.raises(ValueError, match="a GPU of its own and torch sees 1 here"):
        resolved(SERVER, tp=2)
    two = SERVER._replace(gpus=("H200", "H200"))
    model = LARGE._replace(num_heads=8, num_kv_heads=2, intermediate_size=512, context=1 << 30)
    pages = [resolved(two, model, tp=tp).limits.num_pages for tp in (1, 2)]
    assert pages[1] > 2 * pages[0]  # each holds half the weights, too


def test_the_cores_are_shared_among_the_ranks() -> None:
    model = LARGE._replace(num_heads=8, num_kv_heads=2, intermediate_size=512)
    assert [resolved(model=model, tp=tp).threads for tp in (1, 2, 4, 8)] == [4, 2, 1, 1]


GPU_PACKAGES = frozenset({"flashinfer", "sgl_kernel", "triton"})
H200 = SERVER._replace(
    capability=(9, 0), packages=GPU_PACKAGES, cuda_kernels=True, decode_kernels=True
)


def test_a_gpu_computes_with_compiled_kernels_and_recorded_steps() -> None:
    config = resolved(H200, LARGE)
    assert (config.attention, config.kernels, config.cuda_graph) == ("fa3,cuda", "cuda", True)
    assert config.graph_rows == config.max_running == 256
    config = resolved(H200, LARGE, cuda_graph=False, max_running=40)
    assert (config.cuda_graph, config.graph_rows) == (False, 40)


@pytest.mark.parametrize(
    ("hardware", "model", "dtype", "name", "says"),
    [
        (H200, LARGE, "bfloat16", "fa3,cuda", "fastest measured"),
        (
            H200._replace(decode_kernels=False),
            LARGE,
            "bfloat16",
            "fa3,triton",
            "not fa3,cuda: its kernel needs nvcc",
        ),
        (
            H200,
            LARGE._replace(num_heads=36, num_kv_heads=4),
            "bfloat16",
            "fa3,triton",
            "up to 8 query heads a key head, the model has 36 for 4",
        ),
        (
            H200._replace(packages=frozenset({"flashinfer", "triton"})),
            LARGE,
            "bfloat16",
            "flashinfer,cuda",
            "the package sgl_kernel is not installed",
        ),
        (
            H200._replace(capability=(8, 0)),
            LARGE,
            "bfloat16",
            "flashinfer,triton",
            "fa3 needs compute",
        ),
        (H200, LARGE._replace(head_dim=96), "bfloat16", "triton", "heads of 64 and 128"),
        (H200, LARGE, "float32", "triton", "checked in bfloat16 alone"),
        (
            H200._replace(packages=frozenset({"flashinfer", "triton"})),
            LARGE._replace(windowed=True),
            "bfloat16",
            "triton",
            "the package sgl_kernel is not installed; .*not flashinfer,triton: .* windows",
        ),
        (SERVER, LARGE, "bfloat16", "grouped", "the package triton is not installed"),
    ],
)
def test_auto_attention_on_a_gpu_says_what_and_why(
    hardware: Hardware, model: ModelFacts, dtype: str, name: str, says: str
) -> None:
    chosen, why = gpu_attention(EngineConfig(dtype=dtype), hardware, model)
    assert chosen == name and repr(name) in why
    assert re.search(says, why)
    assert resolved(hardware, model, dtype=dtype).attention == name


@pytest.mark.parametrize(
    ("changes", "toggles", "may"),
    [
        ({}, {}, True),
        ({}, {"attention": "flashinfer,cuda"}, True),
        ({}, {"attention": "fa3,triton"}, False),
        ({}, {"dtype": "float32"}, False),
        ({}, {"page_size": 8}, False),
        ({"capability": (8, 9)}, {}, False),
        ({"packages": frozenset({"triton"})}, {}, False),  # nothing for prompts
    ],
    ids=str,
)
def test_kernels_for_decode_steps_are_compiled_for_those_who_may_take_them(
    changes: dict[str, Any], toggles: dict[str, Any], may: bool
) -> None:
    hardware = H200._replace(decode_kernels=False)._replace(**changes)
    assert may_take_decode_kernels(EngineConfig(**toggles), hardware, LARGE) == may


@pytest.mark.parametrize(
    ("hardware", "toggles", "says"),
    [
        (LAPTOP, {"attention": "fa3"}, "attention='fa3' was asked; it needs an NVIDIA GPU"),
        (LAPTOP, {"kernels": "cuda"}, "kernels='cuda' was asked; it needs an NVIDIA GPU"),
        (LAPTOP, {"cuda_graph": True}, "cuda_graph=True was asked; it needs an NVIDIA GPU"),
        (LAPTOP, {"megakernel": True}, "megakernel=True was asked; it needs an NVIDIA GPU"),
        (SERVER, {"attention": "fa3"}, "the package sgl_kernel is not installed"),
        (SERVER, {"kernels": "cuda"}, "they need nvcc and the package apache-tvm-ffi"),
        (H200, {"attention": "grouped", "cuda_graph": True}, "'grouped' cannot be recorded"),
        (H200, {"attention": "fa3,cuda", "page_size": 8}, "pages of a multiple of 16, not of 8;"),
        (H200, {"attention": "fa3,cuda", "max_running": 5000}, "up to 4096 rows, not 5000; use"),
        (
            H200._replace(decode_kernels=False),
            {"attention": "fa3,cuda"},
            "attention='fa3,cuda' was asked; its kernel needs nvcc",
        ),
    ],
)
def test_what_the_machine_cannot_have_is_an_error_with_the_way_out(
    hardware: Hardware, toggles: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        resolved(hardware, LARGE, **toggles)


PACKED = LARGE._replace(stored_quantization="awq", num_packed=7_000_000_000)
TENSOR_CORES = H200._replace(marlin_kernels=True)


@pytest.mark.parametrize(
    ("hardware", "toggles", "kept", "why"),
    [
        (TENSOR_CORES, {}, "awq_marlin", None),
        (TENSOR_CORES, {"quantization": None}, "awq_marlin", None),
        (TENSOR_CORES, {"quantization": "awq"}, "awq", None),
        (TENSOR_CORES, {"dtype": "float32"}, "awq", "in float16 and bfloat16, not in float32"),
        (TENSOR_CORES._replace(capability=(7, 5)), {}, "awq", "compute capability .8, 0., not"),
        (H200, {}, "awq", "need nvcc and the package apache-tvm-ffi"),
        (LAPTOP, {}, "awq", "needs an NVIDIA GPU and the device is 'cpu'"),
    ],
)
def test_four_bits_are_multiplied_on_tensor_cores_where_they_can_be(
    hardware: Hardware, toggles: dict[str, Any], kept: str, why: str | None
) -> None:
    assert resolved(hardware, PACKED, **toggles).quantization == kept
    if why is not None:
        with pytest.raises(ValueError, match=f"'awq_marlin' was asked; .*{why}.*'auto'"):
            resolved(hardware, PACKED, **toggles | {"quantization": "awq_marlin"})


@pytest.mark.parametrize("asked", ["awq", "awq_marlin"])
def test_weights_that_are_not_stored_in_four_bits_are_not_made_so(asked: str) -> None:
    with pytest.raises(ValueError, match=f"'{asked}' was asked; .*minisgl quantize MODEL"):
        resolved(TENSOR_CORES, LARGE, quantization=asked)


def test_weights_of_four_bits_leave_more_of_a_gpu_to_pages() -> None:
    def left(hardware: Hardware) -> int:
        model = PACKED._replace(context=1 << 30)
        return resolved(hardware, model).limits.num_pages * 16 * 2048

    packed = (8_000_000_000 - 7_000_000_000) * 2 + 7_000_000_000 * 5 // 8
    free = (140 << 30) - packed - (4 << 30)
    assert left(TENSOR_CORES) <= free < left(TENSOR_CORES) + 16 * 2048
    assert left(H200) == left(TENSOR_CORES)


def test_pages_take_what_weights_and_activations_leave_of_a_gpu() -> None:
    model = LARGE._replace(context=1 << 30)
    left = resolved(H200, model).limits.num_pages * 16 * 2048
    assert left <= (140 << 30) - 16_000_000_000 - (4 << 30) < left + 16 * 2048


MEGA = H200._replace(megakernels=True)
TWO = MEGA._replace(gpus=("H200", "H200"))
SHARED = LARGE._replace(num_heads=8, num_kv_heads=2)


@pytest.mark.parametrize("model", [LARGE, LARGE._replace(stored_dtype="float16"), PACKED])
def test_a_gpu_computes_all_layers_of_a_token_at_once(model: ModelFacts) -> None:
    assert resolved(MEGA, model).megakernel is True
    assert resolved(MEGA, model, megakernel=True).megakernel is True
    assert resolved(MEGA, model, cuda_graph=False).megakernel is True
    assert resolved(MEGA, model, megakernel=False).megakernel is False


@pytest.mark.parametrize(
    ("hardware", "toggles", "why"),
    [
        (MEGA, {"kernels": "torch"}, "it goes with kernels='cuda', these are 'torch'"),
        (MEGA, {"dtype": "float32"}, "it computes in float16 and bfloat16, not in float32"),
        (TWO, {"tp": 2}, "it computes on one GPU, not with tp=2"),
        (
            MEGA._replace(capability=(8, 9)),
            {},
            "it needs compute capability (9, 0), not (8, 9)",
        ),
        (H200, {}, "it needs nvcc and the package apache-tvm-ffi"),
    ],
)
def test_where_all_layers_cannot_be_computed_at_once_the_reason_is_said(
    hardware: Hardware, toggles: dict[str, Any], why: str
) -> None:
    config = resolved(hardware, SHARED, **toggles)
    assert config.megakernel is False
    assert no_megakernel(config, hardware) == why
    says = re.escape(f"megakernel=True was asked; {why}; use megakernel='auto'")
    with pytest.raises(ValueError, match=says):
        resolved(hardware, SHARED, megakernel=True, **toggles)


def test_a_cpu_computes_layer_after_layer() -> None:
    assert resolved().megakernel is False
    assert resolved(SERVER, LARGE, device="cpu").megakernel is False
    with pytest.raises(ValueError, match="it needs an NVIDIA GPU and the device is 'cpu'"):
        resolved(MEGA, LARGE, device="cpu", megakernel=True)
