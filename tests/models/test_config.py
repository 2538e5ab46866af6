"""What config.json says is understood in both styles, or refused by file and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minisgl.layers.rotary import Rope
from minisgl.models.config import ModelConfig
from tests.models.random_checkpoints import KINDS, checkpoint

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
}
QWEN = LLAMA | {"architectures": ["Qwen2ForCausalLM"]}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"]}


def read(folder: Path, config: dict[str, Any], generation: Any = None) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return ModelConfig.read(folder)


def as_4(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers 4 would have written."""
    old = dict(config)
    rope = dict(old.pop("rope_parameters"))
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    old["torch_dtype"] = old.pop("dtype", "float32")
    return old


@pytest.mark.parametrize("name", KINDS)
def test_the_styles_of_transformers_4_and_5_mean_the_same(name: str, tmp_path: Path) -> None:
    folder = checkpoint(name).folder
    new = json.loads((folder / "config.json").read_text())
    assert "rope_parameters" in new and "rope_theta" not in new
    assert read(tmp_path, as_4(new)) == read(tmp_path, new)


@pytest.mark.parametrize("name", KINDS)
def test_facts_count_what_the_checkpoint_holds(name: str) -> None:
    source = checkpoint(name)
    config = ModelConfig.read(source.folder)
    facts, head_dim = config.facts(), config.head_dim
    assert facts.num_parameters == sum(p.numel() for p in source.model.parameters())
    assert facts.kv_bytes_per_value["float32"] == 3 * 2 * config.num_kv_heads * head_dim * 4
    assert facts.kv_bytes_per_value["bfloat16"] * 2 == facts.kv_bytes_per_value["float32"]
    assert (facts.context, facts.stored_dtype) == (256, "float32")


def test_defaults_are_those_of_llama_2(tmp_path: Path) -> None:
    config = read(tmp_path, {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"})
    assert (config.num_kv_heads, config.head_dim, config.tied) == (4, 16, False)
    assert config.rope == Rope(10_000.0)


@pytest.mark.parametrize(
    ("in_config", "in_generation", "expected"),
    [
        (2, None, (2,)),
        ([2, 3], None, (2, 3)),
        (2, {"eos_token_id": [7, 8]}, (7, 8)),
        (2, {"temperature": 0.6}, (2,)),
        (None, None, ()),
    ],
)
def test_eos_ids_come_from_the_generation_config_first(
    in_config: object, in_generation: object, expected: tuple[int, ...], tmp_path: Path
) -> None:
    config = read(tmp_path, LLAMA | {"eos_token_id": in_config}, in_generation)
    assert config.eos_token_ids == expected


def test_the_old_name_of_a_rope_kind_is_read(tmp_path: Path) -> None:
    scaling = {"type": "linear", "factor": 2.0}
    assert read(tmp_path, LLAMA | {"rope_scaling": scaling}).rope == Rope(1e4, "linear", 2.0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MISTRAL | {"sliding_window": 100}, (100,) * 4),
        (MISTRAL | {"sliding_window": None}, ()),
        (MISTRAL | {"sliding_window": 512}, ()),  # holds the whole context
        (QWEN | {"sliding_window": 100}, ()),  # not used
        (
            QWEN | {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 3},
            (None, None, None, 100),
        ),
        (
            QWEN
            | {
                "sliding_window": 100,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            (None, 100) * 2,
        ),
    ],
)
def test_windows_are_per_layer(
    config: dict[str, Any], expected: tuple[int | None, ...], tmp_path: Path
) -> None:
    assert read(tmp_path, config).traits.windows == expected


YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*supported are LlamaForCausalLM"),
        ({"architectures": None}, "supported are"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size is '64'; it must be a whole number"),
        ({"hidden_size": 66}, "hidden_size is 66; it must be a multiple of num_attention_heads=4"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3; .*divisor"),
        ({"head_dim": 15}, "head_dim is 15; it must be even"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported.*'silu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ({"rope_scaling": YARN}, "'yarn' is not supported; default, linear, llama3 are"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope' is not supported"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "differs by layer type"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: factor is missing"),
        ({"rope_scaling": LLAMA3}, "high_freq_factor is 4.0; it must be above"),
        ({"rope_theta": -1}, "rope_theta is -1"),
        ({"dtype": "float8_e4m3fn"}, "dtype is 'float8_e4m3fn'; .*float32, float16, bfloat16"),
        ({"torch_dtype": 3}, "torch_dtype is 3"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method=.gptq. is not supported"),
        ({"sliding_window": 100}, "sliding_window=100 is not supported"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types names sliding_attention"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types is .* 4 times"),
        ({"attention_bias": "yes"}, "attention_bias is 'yes'"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"config.json.*{says}"):
        read(tmp_path, LLAMA | change)


@pytest.mark.parametrize(
    ("base", "field"),
    [(QWEN, "mlp_bias"), (MISTRAL, "attention_bias"), (MISTRAL, "mlp_bias")],
)
def test_a_bias_that_an_architecture_does_not_have_is_refused(
    base: dict[str, Any], field: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"{field}=True is not supported"):
        read(tmp_path, base | {field: True})


@pytest.mark.parametrize(("text", "says"), [("{", "not readable as JSON"), ("[]", "not a list")])
def test_a_damaged_file_is_named(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=f"config.json.*{says}"):
        ModelConfig.read(tmp_path)


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        ModelConfig.read(tmp_path)
