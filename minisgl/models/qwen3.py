"""Qwen3, dense. Source: Yang et al. 2025 (Qwen3 technical report)."""

from __future__ import annotations

from typing import final

from minisgl.models.config import Traits
from minisgl.models.decoder import Decoder
from minisgl.models.fields import Fields
from minisgl.models.qwen2 import upper_windows


@final
class Qwen3(Decoder):
    """The plain decoder with an RMS norm on each query and key head."""

    @staticmethod
    def traits(fields: Fields) -> Traits:
        """``attention_bias`` is on all four projections."""
        fields.refuse("mlp_bias", False)
        bias = fields.flag("attention_bias")
        return Traits(bias, bias, head_norm=True, windows=upper_windows(fields))
