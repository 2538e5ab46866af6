"""What is written can be read."""

from __future__ import annotations

from minisgl.display import STATES, contrast, ink
from minisgl.inspector.figures.lettering import GREY, INK


def test_text_can_be_read_on_every_state() -> None:
    for state, colour in STATES.items():
        assert contrast(ink(colour), colour) >= 4.5, state
    for letters in (INK, GREY):
        assert contrast(letters, "#ffffff") >= 4.5
