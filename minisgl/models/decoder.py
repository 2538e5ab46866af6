"""The decoder that all supported architectures are, up to a few traits.

A model file names the traits of its architecture; this file computes them. What would change our
mind: an architecture whose layer differs in more than a flag or two gets a layer of its own.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Protocol, final

import torch
from torch import Tensor

from minisgl.distributed.group import Group, share, share_kv_heads
from minisgl.kernel.base import AllLayers, LayerWeights, Place, Shape, TokenMemory
from minisgl.layers.embedding import VocabMatrix
from minisgl.layers.linear import GatedMLP, RowLinear, qkv_linear
from minisgl.layers.norm import HeadTurn, RMSNorm
from minisgl.layers.rotary import Rotary, Rotation
from minisgl.layers.source import Source
from minisgl.models.config import ModelConfig, Traits
from minisgl.models.fields import Fields

_log = logging.getLogger("minisgl")


class BatchMemory(Protocol):
    """The keys and values of one batch's rows: where new ones go, and what tokens read."""

    def place(self, layer: int) -> Place:
        """Where the batch's keys and values belong."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``attention.base.Attention.attend``."""
        ...

    @property
    def token(self) -> TokenMemory | None:
        """If the batch is one token whose layers may be computed by one kernel: its pages."""
        ...


class Model(Protocol):
    """What computes hidden states and logits; all that an executor knows of an architecture."""

    dtype: torch.dtype
    device: torch.device

    def __call__(self, ids: Tensor, positions: Tensor, memory: BatchMemory) -> Tensor:
        """ids, positions: (tokens,). Returns every token's last hidden state: (tokens, hidden)."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (rows, hidden_size), the rows that sample. Returns (rows, vocab_size)."""
        ...


class Decoder(ABC):
    """Embedding, layers, norm, output head. Construction reads this rank's part of the weights."""

    @staticmethod
    @abstractmethod
    def traits(fields: Fields) -> Traits:
        """What config.json says about the traits of this architecture.

        Raises ValueError, naming the field, for what the architecture does not have.
        """

    @final
    def __init__(self, source: Source, config: ModelConfig, group: Group) -> None:
        vocab, hidden = config.vocab_size, config.hidden_size
        self.embedding = VocabMatrix(source, "model.embed_tokens", vocab, hidden, group)
        self.layers = [Layer(source, layer, config, group) for layer in range(config.num_layers)]
        self.norm = RMSNorm(source, "model.norm", hidden, config.norm_eps)
        self.head = (
            self.embedding if config.tied else VocabMatrix(source, "lm_head", vocab, hidden, group)
        )
        weight = self.norm.weight
        self.dtype, self.device = weight.dtype, weight.device
        self.rotary = Rotary(config.rope, config.head_dim, self.device, source.kernels)
        self._kernels, self._config, self._alone = source.kernels, config, group.size == 1

    @final
    def __call__(self, ids: Tensor, positions: Tensor, memory: BatchMemory) -> Tensor:
        """See ``Model``."""
        rotation = self.rotary.at(positions, self.dtype)
        x, residual = self.embedding.embed(ids), None
        if memory.token is not None and self._at_once is not None:
            return self.norm(self._at_once(x, *rotation, memory.token), None)
        for layer in self.layers:
            x, residual = layer(x, residual, rotation, memory)
        return self.norm(x, residual)

    @cached_property
    def _at_once(self) -> AllLayers | None:
        """All layers for one token, where the kernels have that; made at the first use."""
        config, traits, made = self._config, self._config.traits, None
        # ranks add up what rows of theirs give, then the bias
        if self._alone and not traits.o_bias and not traits.mlp_bias:
            windows = traits.windows or (None,) * config.num_layers
            weights = [layer.weights(w) for layer, w in zip(self.layers, windows, strict=True)]
            shape = Shape(
                config.hidden_size,
                config.intermediate_size,
                config.num_heads,
                config.num_kv_heads,
                config.head_dim,
                eps=config.norm_eps,
                head_eps=config.norm_eps,
            )
            made = self._kernels.megakernel(weights, shape)
        if made is None:
            _log.info("no megakernel for this model's sizes or weights: layer after layer instead")
        return made

    @final
    def logits(self, hidden: Tensor) -> Tensor:
        """See ``Model``."""
        return self.head.logits(hidden)


class Layer:
    """Attention and a gated MLP, each after a norm and added to what came in."""

    def __init__(self, source: Source, layer: int, config: ModelConfig, group: Group) -> None:
        name, hidden = f"model.layers.{layer}", config.hidden_size
        self.attention_norm = RMSNorm(source, f"{name}.input_layernorm", hidden, config.norm_eps)
        self.attention = _SelfAttention(source, f"{name}.self_attn", layer, config, group)
        self.mlp_norm = RMSNorm(source, f"{name}.post_attention_layernorm", hidden, config.norm_eps)
        bias = config.traits.mlp_bias
        self.mlp = GatedMLP(source, f"{name}.mlp", hidden, config.intermediate_size, bias, group)

    def __call__(
        self, x: Tensor, residual: Tensor | None, rotation: Rotation, memory: BatchMemory
    ) -> tuple[Tensor, Tensor]:
        """x: what the layer before leaves to add to the residual stream; residual: the stream, None
        before the first layer. Both (tokens, hidden_size), and given up. Returns the same pair."""
        x, residual = self.attention(x, residual, self.attention_norm, rotation, memory)
        return self.mlp(x, residual, self.mlp_norm)

    def weights(self, window: int | None) -> LayerWeights:
        """What it multiplies with. window: newest positions that a token sees; None: all."""
        attention, mlp = self.attention, self.mlp
        return LayerWeights(
            self.attention_norm.weight,
            attention.qkv.matrix,
            attention.turn.weight,
            attention.o.matrix,
            self.mlp_norm.weight,
            mlp.gate_up.matrix,
            mlp.down.matrix,
            window,
        )


class _SelfAttention:
    def __init__(
        self, source: Source, name: str, layer: int, config: ModelConfig, group: Group
    ) -> None:
        heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
        own, own_kv = share(heads, group, "attention heads"), share_kv_heads(kv_heads, group)
        self.qkv = qkv_linear(
            source,
            name,
            config.hidden_size,
            dim,
            (heads, own),
            (kv_heads, own_kv),
            config.traits.qkv_bias,
        )
        eps = config.norm_eps if config.traits.head_norm else None
        self.turn = HeadTurn(source, name, len(own), len(own_kv), dim, eps)
        columns = range(own.start * dim, own.stop * dim)
        self.o = RowLinear(
            source,
            f"{name}.o_proj",
            heads * dim,
            columns,
            config.hidden_size,
            config.traits.o_bias,
            group,
        )
        self._layer, self._dim = layer, dim

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        norm: RMSNorm,
        rotation: Rotation,
        memory: BatchMemory,
    ) -> tuple[Tensor, Tensor]:
        """See ``GatedMLP``."""
        qkv, residual = norm.then(self.qkv.matrix, x, residual)
        heads = qkv.view(len(qkv), -1, self._dim)
        q, k, v = self.turn(heads, rotation, memory.place(self._layer))
        return self.o(memory.attend(self._layer, q, k, v)), residual
