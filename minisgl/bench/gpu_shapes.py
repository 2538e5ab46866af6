"""Checkpoints of Qwen3's shapes with seeded random weights, made where they are measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch

from minisgl.bench.work import LARGE

SHAPES: Final[dict[str, dict[str, Any]]] = {
    "0.6B": LARGE,
    "8B": dict(
        vocab_size=151_936,
        hidden_size=4096,
        intermediate_size=12_288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    ),
    "14B": dict(
        vocab_size=151_936,
        hidden_size=5120,
        intermediate_size=17_408,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=8,
        head_dim=128,
    ),
}
_TIED: Final = {"0.6B"}
_GROUP: Final = 128  # inputs that share a scale in four bits


def write(name: str, folder: Path, four_bits: bool = False) -> Path:
    """The checkpoint of that shape, bfloat16, always the same, made on the GPU.

    four_bits: the layers' matrices as AWQ's, in groups of 128.
    """
    from safetensors.torch import save_file

    shape = SHAPES[name]
    hidden, dim = shape["hidden_size"], shape["head_dim"]
    q, kv = shape["num_attention_heads"] * dim, shape["num_key_value_heads"] * dim
    inner, vocab = shape["intermediate_size"], shape["vocab_size"]
    folder.mkdir(parents=True)
    generator = torch.Generator("cuda").manual_seed(0)

    def some(*size: int) -> torch.Tensor:
        x = torch.empty(size, dtype=torch.bfloat16, device="cuda")
        return x.normal_(0, 0.02, generator=generator).cpu()

    def matrix(name: str, outputs: int, inputs: int) -> dict[str, torch.Tensor]:
        if not four_bits:
            return {f"{name}.weight": some(outputs, inputs)}

        def words(rows: int) -> torch.Tensor:
            x = torch.empty(rows, outputs // 8, dtype=torch.int32, device="cuda")
            return x.random_(-(1 << 31), 1 << 31, generator=generator).cpu()

        groups = inputs // _GROUP
        scales = torch.full((groups, outputs), 0.02 / 6.5, dtype=torch.float16)
        return {
            f"{name}.qweight": words(inputs),
            f"{name}.qzeros": words(groups),
            f"{name}.scales": scales,
        }

    where: dict[str, str] = {}

    def save(number: int, tensors: dict[str, torch.Tensor]) -> None:
        file = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, file))

    outside = {"model.embed_tokens.weight": some(vocab, hidden)}
    outside["model.norm.weight"] = torch.ones(hidden).bfloat16()
    if name not in _TIED:
        outside["lm_head.weight"] = some(vocab, hidden)
    save(0, outside)
    for layer in range(shape["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        each = {
            "self_attn.q_proj": (q, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
        norms |= {"self_attn.q_norm": dim, "self_attn.k_norm": dim}
        tensors = {f"{at}{n}.weight": torch.ones(size).bfloat16() for n, size in norms.items()}
        for part, size in each.items():
            tensors |= matrix(at + part, *size)
        save(layer + 1, tensors)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = shape | {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "max_position_embeddings": 4096,
        "rope_theta": 1_000_000,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": name in _TIED,
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "attention_bias": False,
        "eos_token_id": 0,
    }
    if four_bits:
        says = {"quant_method": "awq", "bits": 4, "group_size": _GROUP, "zero_point": True}
        config["quantization_config"] = says | {"version": "gemm"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def matrices(name: str) -> tuple[tuple[int, int], ...]:
    """(outputs, inputs) of a layer's products, as they are merged."""
    shape = SHAPES[name]
    hidden, inner, dim = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    q, kv = shape["num_attention_heads"] * dim, shape["num_key_value_heads"] * dim
    return (q + 2 * kv, hidden), (hidden, q), (2 * inner, hidden), (hidden, inner)
