"""What a model folder's JSON files say about the model, checked, as one frozen object.

Plain JSON: no transformers. Reads what transformers 4 wrote (``rope_theta``, ``rope_scaling``,
``torch_dtype``) and what 5 writes (``rope_parameters``, ``dtype``). What would change the numbers
and is not computed here is refused by name, never ignored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from minisgl import registry
from minisgl.layers.rotary import Rope
from minisgl.models.fields import Fields
from minisgl.models.packing import Packing
from minisgl.resolve import ModelFacts

DTYPE_BYTES: Final = MappingProxyType({"float32": 4, "float16": 2, "bfloat16": 2})


@dataclass(frozen=True)
class Traits:
    """In what one architecture, as configured, departs from a plain Llama."""

    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    head_norm: bool = False  # RMS norm of each query and key head before the rotation
    windows: tuple[int | None, ...] = ()  # per layer: newest positions that a token sees; (): all


@dataclass(frozen=True)
class ModelConfig:
    """One decoder-only transformer. Sizes are those of the whole model, not of a rank."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context: int  # positions it was made for
    norm_eps: float
    rope: Rope
    traits: Traits
    tied: bool  # the output head is the embedding
    stored_dtype: str
    eos_token_ids: tuple[int, ...]
    packing: Packing | None = None  # of the matrices; None: each number stands for itself

    @staticmethod
    def read(folder: Path) -> ModelConfig:
        """The model in ``folder``: config.json, and generation_config.json where there is one.

        Raises FileNotFoundError without config.json, and ValueError, naming file and field, for
        what is missing, has the wrong type, or is not supported.
        """
        fields = Fields.read(folder / "config.json")
        architecture = _architecture(fields)
        _refuse_what_no_model_has(fields)
        hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
        kv_heads = fields.integer("num_key_value_heads", heads)
        if heads % kv_heads:
            raise fields.wrong("num_key_value_heads", f"a divisor of num_attention_heads={heads}")
        if fields.get("head_dim") is None and hidden % heads:
            raise fields.wrong("hidden_size", f"a multiple of num_attention_heads={heads}")
        head_dim = fields.integer("head_dim", hidden // heads)
        if head_dim % 2:
            raise fields.wrong("head_dim", "even: rotary embedding turns pairs of values")
        dtype = fields.text("dtype", fields.text("torch_dtype", "float32"))
        if dtype not in DTYPE_BYTES:
            name = "torch_dtype" if fields.get("dtype") is None else "dtype"
            raise fields.wrong(name, f"one of {', '.join(DTYPE_BYTES)}")
        vocab_size = fields.integer("vocab_size")
        return ModelConfig(
            architecture=architecture,
            vocab_size=vocab_size,
            hidden_size=hidden,
            intermediate_size=fields.integer("intermediate_size"),
            num_layers=fields.integer("num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            context=fields.integer("max_position_embeddings"),
            norm_eps=fields.positive("rms_norm_eps", 1e-6),
            rope=_rope(fields),
            traits=registry.find("model", architecture).traits(fields),
            tied=fields.flag("tie_word_embeddings"),
            stored_dtype=dtype,
            eos_token_ids=_eos(folder, fields),
            packing=Packing.read(folder, fields),
        )

    @property
    def num_parameters(self) -> int:
        """Numbers in the checkpoint; a tied head counts once."""
        hidden, traits = self.hidden_size, self.traits
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        layer = traits.qkv_bias * (q + 2 * kv) + traits.o_bias * hidden
        layer += traits.head_norm * 2 * self.head_dim
        layer += traits.mlp_bias * (2 * self.intermediate_size + hidden) + 2 * hidden
        outside = (1 if self.tied else 2) * self.vocab_size * hidden + hidden
        return self._in_matrices + self.num_layers * layer + outside

    @property
    def num_packed(self) -> int:
        """Of these, the ones in four bits: those of the layers' matrices, but for what a checkpoint
        leaves out by name."""
        return 0 if self.packing is None else self._in_matrices

    @property
    def _in_matrices(self) -> int:
        heads = 2 * (self.num_heads + self.num_kv_heads) * self.head_dim
        return self.num_layers * self.hidden_size * (heads + 3 * self.intermediate_size)

    def facts(self) -> ModelFacts:
        """What sizing an engine needs to know of the model."""
        values = 2 * self.num_layers * self.num_kv_heads * self.head_dim
        per_position = {dtype: values * size for dtype, size in DTYPE_BYTES.items()}
        return ModelFacts(
            self.context,
            self.num_parameters,
            per_position,
            self.stored_dtype,
            self.num_heads,
            self.num_kv_heads,
            self.intermediate_size,
            self.head_dim,
            any(self.traits.windows),
            None if self.packing is None else "awq",
            self.num_packed,
        )


def windows(fields: Fields, size: int | None, sliding: range) -> tuple[int | None, ...]:
    """Each layer's window: ``size`` on the layers that config.json's ``layer_types`` calls
    sliding, or in ``sliding`` where it does not say; None elsewhere, and where the window holds
    the whole context.
    """
    count = fields.integer("num_hidden_layers")
    kinds = fields.texts("layer_types") or tuple(
        "sliding_attention" if size is not None and layer in sliding else "full_attention"
        for layer in range(count)
    )
    known = {"full_attention", "sliding_attention"}
    if len(kinds) != count or not known.issuperset(kinds):
        raise fields.wrong("layer_types", f"{count} times one of {', '.join(sorted(known))}")
    if size is None and "sliding_attention" in kinds:
        raise fields.wrong("sliding_window", "in use: layer_types names sliding_attention")
    if size is None or size >= fields.integer("max_position_embeddings"):
        return ()
    out = tuple(size if kind == "sliding_attention" else None for kind in kinds)
    return out if any(out) else ()


def _architecture(fields: Fields) -> str:
    known = registry.names("model")
    there = fields.texts("architectures") or ()
    for name in there:
        if name in known:
            return name
    raise ValueError(
        f"{fields.where}: architectures is {list(there)!r}; supported are {', '.join(known)}"
    )


def _refuse_what_no_model_has(fields: Fields) -> None:
    fields.refuse("hidden_act", "silu")
    fields.refuse("partial_rotary_factor", 1)


def _rope(fields: Fields) -> Rope:
    new = fields.inner("rope_parameters")
    said = new if new.values else fields.inner("rope_scaling")
    theta = said.positive("rope_theta", fields.positive("rope_theta", 10_000.0))
    said.refuse("partial_rotary_factor", 1)
    kind = said.text("rope_type", said.text("type", "default"))
    nested = [name for name, value in said.values.items() if isinstance(value, dict)]
    if nested:
        raise ValueError(f"{said.where} differs by layer type ({', '.join(nested)}): not supported")
    if kind == "default":
        return Rope(theta)
    factor = said.positive("factor") if kind in ("linear", "llama3") else 1.0
    if kind == "linear":
        return Rope(theta, "linear", factor)
    if kind != "llama3":
        raise ValueError(f"{said.where}: {kind!r} is not supported; default, linear, llama3 are")
    low, high = said.positive("low_freq_factor"), said.positive("high_freq_factor")
    if low >= high:
        raise said.wrong("high_freq_factor", f"above low_freq_factor={low}")
    original = said.integer("original_max_position_embeddings")
    return Rope(theta, "llama3", factor, low, high, original)


def _eos(folder: Path, fields: Fields) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    ids = Fields.read(path).ids("eos_token_id") if path.exists() else ()
    return ids or fields.ids("eos_token_id")  # how to generate is the former file's business
