"""Llama 2, 3 and 3.x. Source: Touvron et al. 2023; Grattafiori et al. 2024 (llama3 rotary)."""

from __future__ import annotations

from typing import final

from minisgl.models.config import Traits, windows
from minisgl.models.decoder import Decoder
from minisgl.models.fields import Fields


@final
class Llama(Decoder):
    """The plain decoder, with biases where config.json says so."""

    @staticmethod
    def traits(fields: Fields) -> Traits:
        """``attention_bias`` is on all four projections, ``mlp_bias`` on all three."""
        windows(fields, None, range(0))  # refuses layer_types that slide
        fields.refuse("sliding_window")
        attention = fields.flag("attention_bias")
        return Traits(attention, attention, fields.flag("mlp_bias"))
