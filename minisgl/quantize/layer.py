"""One decoder layer to four bits: what it computes, which factors it takes, what is written.

A factor that an input's column is multiplied by is divided out where that input comes from: of the
norm before queries, keys and values and before the MLP, of the rows of the value and of the up
projection. So the layer computes the same, and only the rounding changes.
Source: Lin et al. 2023 (AWQ), sec. 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minisgl.distributed.group import ALONE
from minisgl.kernel.base import Place, TokenMemory
from minisgl.layers.rotary import Rotary
from minisgl.models.config import ModelConfig
from minisgl.models.decoder import Layer
from minisgl.models.weights import Weights
from minisgl.quantize.bench import Bench, Probe
from minisgl.quantize.fitting import Fitting, MatrixError

_TOGETHER: Final = 4096  # tokens that are computed together


class LayerResult(NamedTuple):
    """What a layer became."""

    tensors: dict[str, Tensor]  # what is new or changed, by its name in the checkpoint
    errors: list[MatrixError]


class LayerBench:
    """One layer of a model folder, in float32."""

    def __init__(self, weights: Weights, config: ModelConfig, index: int, tokens: int) -> None:
        """tokens: how many ``run`` will be given."""
        self._bench, self._config, self.index = Bench(weights, tokens), config, index
        self._layer = Layer(self._bench, index, config, ALONE)
        self._name = f"model.layers.{index}"

    @property
    def probes(self) -> Mapping[str, Probe]:
        """The layer's matrices by their names in the checkpoint; stacked ones are one probe."""
        return self._bench.probes

    def run(self, hidden: Tensor) -> None:
        """Compute the layer in place. hidden: (sequences, length, hidden_size)."""
        length = hidden.shape[1]
        config = self._config
        rotary = Rotary(config.rope, config.head_dim, hidden.device, self._bench.kernels)
        layer, windows = self._layer, self._config.traits.windows
        window = windows[self.index] if windows else None
        for some in hidden.split(max(1, _TOGETHER // length)):
            rotation = rotary.at(torch.arange(length).repeat(len(some)), hidden.dtype)
            rows = some.view(-1, hidden.shape[2])
            memory = _Sequences(self._config, rows, length, window)
            torch.add(*layer(rows, None, rotation, memory), out=rows)

    def quantise(self, group: int | None) -> LayerResult:
        """Fit the layer to four bits by what ``run`` has seen. Only once: it changes the layer.

        group: inputs that share a scale; None: all that an output reads.
        """
        attention, mlp = f"{self._name}.self_attn", f"{self._name}.mlp"
        value, up, probes = f"{attention}.v_proj", f"{mlp}.up_proj", self.probes
        qkv, o = (Fitting(probes[name], group) for name in (value, f"{attention}.o_proj"))
        gate_up, down = (Fitting(probes[name], group) for name in (up, f"{mlp}.down_proj"))
        # all are searched before any is changed: a search sees the layer as it was
        of_x, of_up, of_activation = qkv.search(), gate_up.search(), down.search()
        of_heads = o.search(self._alike(probes[f"{attention}.o_proj"].magnitude))
        norms = {"input_layernorm": (self._layer.attention_norm, qkv, of_x)}
        norms["post_attention_layernorm"] = self._layer.mlp_norm, gate_up, of_up
        changed = dict[str, Tensor]()
        for name, (norm, fitting, factors) in norms.items():
            fitting.multiply_columns(divide(norm.weight, factors))
            changed[f"{self._name}.{name}.weight"] = norm.weight
        o.multiply_columns(of_heads)
        qkv.divide_rows(value, self._per_value(of_heads))
        down.multiply_columns(of_activation)
        gate_up.divide_rows(up, of_activation)
        for fitting, name in ((qkv, value), (gate_up, up)):
            if (bias := fitting.bias_of(name)) is not None:
                changed[f"{name}.bias"] = bias
        result = LayerResult({name: to_half(name, one) for name, one in changed.items()}, [])
        for fitting in (qkv, o, gate_up, down):
            for name, weight, error in fitting.results():
                parts = {"qweight": weight.codes, "qzeros": weight.zeros, "scales": weight.scales}
                result.tensors.update({f"{name}.{part}": one for part, one in parts.items()})
                result.errors.append(error)
        return result

    def _alike(self, magnitude: Tensor) -> Tensor:
        """Heads that read one value head must share its factors, so they count as one: the mean."""
        heads = magnitude.view(self._config.num_kv_heads, -1, self._config.head_dim)
        return heads.mean(1, keepdim=True).expand_as(heads).reshape(-1)

    def _per_value(self, factors: Tensor) -> Tensor:
        """The factor of each output of the value projection, from those of what reads them."""
        return factors.view(self._config.num_kv_heads, -1, self._config.head_dim)[:, 0].reshape(-1)


class _Sequences:
    """A layer's memory of whole sequences of one length, one after the other in x."""

    token: TokenMemory | None = None

    def __init__(self, config: ModelConfig, x: Tensor, length: int, window: int | None) -> None:
        self._length, self._window = length, window
        self._kept = x.new_empty(2, len(x), config.num_kv_heads, config.head_dim)

    def place(self, layer: int) -> Place:
        """See ``BatchMemory``. Nobody reads them there."""
        return Place(self._kept[0], self._kept[1], torch.arange(self._kept.shape[1]))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``BatchMemory``. Causal in each sequence."""
        behind = torch.arange(self._length)[:, None] - torch.arange(self._length)
        seen = (behind >= 0) & (behind < (self._window or self._length))
        copies = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(copies, 1), v.repeat_interleave(copies, 1)
        q, k, v = (t.unflatten(0, (-1, self._length)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, seen)
        return out.transpose(1, 2).flatten(0, 1).flatten(1)


def divide(weight: Tensor, factors: Tensor) -> Tensor:
    """Divide a norm's weight, as closely as float16 can, in place; by what it is divided in fact.

    So the matrix that is multiplied by the result makes good what the norm's rounding changes.
    """
    before = weight.clone()
    after = (before / factors).half().float()
    after = torch.where(after == 0, before.half().float(), after)
    weight.copy_(after)
    return torch.where(after == 0, 1.0, before / after)


def to_half(name: str, tensor: Tensor) -> Tensor:
    """As float16. Raises ValueError, naming the tensor, where a number is too large for that."""
    half = tensor.half()
    if not torch.isfinite(half).all():
        raise ValueError(f"{name} has numbers up to {float(tensor.abs().max()):g}, beyond float16")
    return half
