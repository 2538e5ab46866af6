"""Qwen2 and Qwen2.5. Source: Yang et al. 2024 (Qwen2 technical report)."""

from __future__ import annotations

from typing import final

from minisgl.models.config import Traits, windows
from minisgl.models.decoder import Decoder
from minisgl.models.fields import Fields


@final
class Qwen2(Decoder):
    """The plain decoder with biases on queries, keys and values, always."""

    @staticmethod
    def traits(fields: Fields) -> Traits:
        """A window only with ``use_sliding_window``."""
        fields.refuse("attention_bias", True)
        fields.refuse("mlp_bias", False)
        return Traits(qkv_bias=True, windows=upper_windows(fields))


def upper_windows(fields: Fields) -> tuple[int | None, ...]:
    """Qwen's windows: ``sliding_window`` on the layers from ``max_window_layers`` up."""
    if not fields.flag("use_sliding_window") or fields.get("sliding_window") is None:
        return windows(fields, None, range(0))
    count = fields.integer("num_hidden_layers")
    upper = range(fields.integer("max_window_layers", 28, least=0), count)
    return windows(fields, fields.integer("sliding_window"), upper)
