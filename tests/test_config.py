"""The configuration: wrong values are named, "auto" is resolved once and by a pure function."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

import pytest

from minisgl.config import EngineConfig, Hardware, ModelFacts, resolve
from minisgl.registry import find, names
from tests.seen import Seen

LAPTOP = Hardware(cores=4, memory=8 << 30)
SERVER = Hardware(cores=16, memory=128 << 30, gpus=("H200",), gpu_memory=140 << 30)
TINY = ModelFacts(4096, 4_000_000, {"float32": 4096, "float16": 2048, "bfloat16": 2048}, "float16")
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
    ("toggles", "error", "says"),
    [
        ({"page_size": 0}, ValueError, "page_size must be at least 1, got 0"),
        ({"page_size": "big"}, TypeError, "page_size must be an integer, got 'big'"),
        ({"num_pages": 1.5}, TypeError, "num_pages"),
        ({"num_pages": True}, TypeError, "num_pages"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"overlap": 1}, TypeError, "overlap must be True or False, got 1"),
        ({"policy": "fifo"}, ValueError, "policy must be one of .*prefill_first.*got 'fifo'"),
        ({"policy": 7}, TypeError, "policy"),
        ({"attention": "flash"}, ValueError, "attention must be one of"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of"),
        ({"max_seq_len": 10**6}, ValueError, "made for 4096 positions"),
        ({"num_pages": 10**6}, ValueError, "need 65536000000 bytes, 8589934592 are free; lower"),
        ({"device": "cuda"}, ValueError, "torch sees no GPU here; use device='cpu'"),
        ({"tp": 2}, ValueError, "use tp=1"),
    ],
)
def test_a_wrong_value_is_refused_by_name(toggles: dict[str, Any], error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        resolved(**toggles)


def test_no_room_for_a_page_says_how_much_one_needs() -> None:
    with pytest.raises(ValueError, match="a KV page of 16 positions needs 65536 bytes; 1000 are"):
        resolved(Hardware(1, 1000))


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(TypeError, match="no such option: pagesize; there are overlap, .*page_size"):
        EngineConfig().but(pagesize=4)


def test_sizes_are_known_only_once_resolved() -> None:
    with pytest.raises(ValueError, match="num_pages is still 'auto'"):
        _ = EngineConfig().limits


def test_a_configuration_shows_what_differs_and_explains_each_option() -> None:
    config = EngineConfig(overlap=False, num_pages=8)
    assert repr(config) == "EngineConfig(overlap=False, num_pages=8)"
    assert repr(EngineConfig()) == "EngineConfig()"


def test_a_policy_of_ones_own_is_shown_by_its_name_without_an_address() -> None:
    def mine(ledger: Any) -> Any: ...

    assert repr(EngineConfig(policy=mine)) == "EngineConfig(policy=mine)"
    assert repr(EngineConfig(policy=partial(mine))) == "EngineConfig(policy=partial)"
    assert EngineConfig(policy=mine).policy_name == "mine"
    assert EngineConfig(policy="mixed").policy_name == "mixed"


def test_a_notebook_shows_what_differs_from_the_default_and_what_it_means() -> None:
    seen = Seen(EngineConfig(overlap=False, num_pages=8)._repr_html_())
    assert f"2 options set, {len(fields(EngineConfig)) - 2} as by default" in seen.words
    means = EngineConfig.describe()
    assert seen.tables[0][1:] == [
        ["overlap", "False", "True", means["overlap"]],
        ["num_pages", "8", "'auto'", means["num_pages"]],
    ]
    assert "0 options set" in Seen(EngineConfig()._repr_html_()).words
    assert set(EngineConfig.describe()) == {option.name for option in fields(EngineConfig)}
    assert all(EngineConfig.describe().values())


@pytest.mark.parametrize("kind", ["policy", "prefix_cache", "attention"])
def test_choices_are_the_registered_names(kind: str) -> None:
    (option,) = (option for option in fields(EngineConfig) if option.name == kind)
    assert set(option.metadata["choices"]) - {"auto"} == set(names(kind))


def test_an_unregistered_name_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match="unknown policy 'fifo'; there are prefill_first, mixed"):
        find("policy", "fifo")
