"""Mistral. Source: Jiang et al. 2023 (sliding window: sec. 2)."""

from __future__ import annotations

from typing import final

from minisgl.models.config import Traits, windows
from minisgl.models.decoder import Decoder
from minisgl.models.fields import Fields


@final
class Mistral(Decoder):
    """The plain decoder, with one sliding window on every layer where config.json gives one."""

    @staticmethod
    def traits(fields: Fields) -> Traits:
        """``sliding_window`` counts the token itself; null: no window."""
        fields.refuse("attention_bias", False)
        fields.refuse("mlp_bias", False)
        given = fields.get("sliding_window") is not None
        size = fields.integer("sliding_window") if given else None
        every = range(fields.integer("num_hidden_layers"))
        return Traits(windows=windows(fields, size, every))
