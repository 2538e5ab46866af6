"""Text in figures: its sizes and inks, how wide it is, what the font can draw."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Final

from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path

from minisgl.display import visible

INK, GREY = "#10131a", "#5b6472"
TITLE, TEXT, SMALL = 9.5, 7.5, 6.5  # points
_NO_GLYPH: Final = "\N{WHITE VERTICAL RECTANGLE}"


@lru_cache(4096)
def text_width(text: str, size: float) -> float:
    """Points that a line of text takes, with what hinting may add at common resolutions."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, _font(size), ismath=False)
    return 1.05 * float(width)


def fitted(text: str, width: float, size: float = TEXT) -> str:
    """As much of a text as these points hold, "" where that would say nothing."""
    if text_width(text, size) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle].rstrip() + "…", size) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…" if low > 2 else ""


def printable(text: str) -> str:
    """A text as one line that the font can draw; what it cannot is a box."""
    glyphs = _glyphs()
    return "".join(c if ord(c) in glyphs else _NO_GLYPH for c in visible(text))


def wrapped(text: str, width: float, size: float) -> list[str]:
    """A text in lines that are no wider than these points."""
    lines, line = list[str](), ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and text_width(longer, size) > width:
            lines.append(line)
            longer = word
        line = longer
    return [*lines, line] if line else lines


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(_font(TEXT))).get_charmap())


@cache
def _font(size: float) -> FontProperties:
    return FontProperties(size=size)
