"""Values as HTML text for notebooks: cards, tables, bars, and the colours of the states.

The words carry every fact, so a reader without styles or colours (a code host, a screen reader)
misses none; style is inline, and of the kind that JupyterLab keeps in notebooks that it does not
trust. Equal values give equal text: no ids, no clock. Whatever is not ``Html`` is escaped and
shortened where it is put in, so prompts stay text; long lists are cut, so the size is bounded.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

# A state keeps its colour everywhere: reprs, figures, inspector. The one warm colour is what the
# cache gave for free; red is for faults alone. On dark ground other tones may be used.
STATES: Final[Mapping[str, str]] = {
    "waiting": "#d5d9e0",
    "prefill": "#8fb5ff",
    "decode": "#2f5fd0",
    "reused": "#f0a23a",
    "evictable": "#f7d9a8",
    "evicted": "#964a8b",
    "fault": "#e42536",
    "free": "#f1f3f6",
}

MOST: Final = 20  # rows of a table
_LONGEST: Final = 300  # characters of one cell
_BAR: Final = 640  # pixels that a bar is wide at most
_LETTER: Final = 6.2  # pixels that a letter of a bar is wide
_INKS: Final = ("#10131a", "#ffffff")
# what JupyterLab would align to the right, numbers or not
_LEFT, _RIGHT = ' style="text-align:left"', ' style="text-align:right"'


class Html(str):
    """Text that is HTML already; all other text is escaped where it is put in."""

    __slots__ = ()


class Part(NamedTuple):
    """A share of a bar."""

    label: str
    size: int
    state: str  # one of STATES


def visible(text: str, most: int = _LONGEST) -> str:
    """A text as one line of ``most`` characters at most, in which nothing hides.

    Characters that do not print (controls, bidirectional overrides, lone surrogates) are spelled
    out, as in ``\\x1b``; these do not count.
    """
    line = " ".join(text.split())
    line = line if len(line) <= most else line[: most - 1] + "…"
    if line.isprintable():
        return line
    joins = "\u200c\u200d"  # part of words in Persian and Hindi, and of emoji
    return "".join(
        c if c.isprintable() or c in joins else c.encode("unicode_escape").decode() for c in line
    )


def escape(value: object) -> Html:
    """A value as HTML that shows it, shortened; None as a dash. ``Html`` passes as it is."""
    if isinstance(value, Html):
        return value
    return Html("–" if value is None else html.escape(visible(str(value))))


def card(title: str, says: object, *parts: Html) -> Html:
    """A thing by its kind, what there is to say of it in a sentence, and its parts."""
    return Html(f"<div><div><b>{escape(title)}</b> {escape(says)}</div>{''.join(parts)}</div>")


def line(text: object) -> Html:
    """A line of its own."""
    return Html(f"<div>{escape(text)}</div>")


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], total: int | None = None) -> Html:
    """Rows under heads, the first cell of each naming it; none at all gives nothing.

    ``MOST`` rows are shown, and how many more there are: of ``total``, where ``rows`` is cut
    already. Without heads it is a list of facts.
    """
    rest = iter(rows)
    shown = list(islice(rest, MOST))
    if not shown:
        return Html()
    more = sum(1 for _ in rest) if total is None else total - len(shown)
    lines = ['<table style="margin:4px 0">']
    if heads:
        named = zip(heads, shown[0], strict=True)
        cells = (f'<th scope="col"{_side(cell)}>{escape(head)}</th>' for head, cell in named)
        lines.append(f"<thead><tr>{''.join(cells)}</tr></thead>")
    lines.append("<tbody>")
    for first, *others in shown:
        cells = (f"<td{_side(cell)}>{escape(cell)}</td>" for cell in others)
        lines.append(f'<tr><th scope="row"{_side(first)}>{escape(first)}</th>{"".join(cells)}</tr>')
    if more > 0:
        lines.append(f'<tr><td colspan="{len(shown[0])}"{_LEFT}>and {more:,} more</td></tr>')
    return Html("\n".join([*lines, "</tbody></table>"]))


def bar(of: str, parts: Iterable[Part]) -> Html:
    """Parts of a whole side by side, each as wide as its share and labelled with its size.

    of: what the whole is, for those who do not see it. Parts beyond ``MOST`` are put together by
    their state; empty ones are left out, and nothing at all gives nothing.
    """
    some = [part for part in parts if part.size > 0]
    if not some:
        return Html()
    some = some[:MOST] + _together(some[MOST:])
    total = sum(part.size for part in some)
    says = escape(f"{of}: {', '.join(f'{part.label} {part.size}' for part in some)}")
    style = (
        f"max-width:{_BAR}px;margin:4px 0;overflow:hidden;white-space:nowrap;line-height:20px;"
        f"border:1px solid #c4c8d0"
    )
    spans = "".join(_span(part, part.size / total) for part in some)
    return Html(f'<div role="img" aria-label="{says}" style="{style}">{spans}</div>')


def swatch(state: str, label: object) -> Html:
    """A label with the colour of a state before it."""
    style = "display:inline-block;width:10px;height:10px;border:1px solid #888888"
    return Html(f'<span style="{style};background-color:{STATES[state]}"></span> {escape(label)}')


def folded(summary: object, *parts: Html) -> Html:
    """Parts that are shown when somebody asks; nothing if they are empty."""
    if not (inside := "".join(parts)):
        return Html()
    return Html(f"<details><summary>{escape(summary)}</summary>{inside}</details>")


def counted(n: int, one: str) -> str:
    """``1 page``, ``2 pages``."""
    return f"{n:,} {one}{'' if n == 1 else 's'}"


def ink(colour: str) -> str:
    """Black or white, whichever reads better on a colour (``#rrggbb``). Source: WCAG 2.2, 1.4.3."""
    return max(_INKS, key=lambda letters: contrast(letters, colour))


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours (``#rrggbb``), 1 to 21. Source: WCAG 2.2, section 1.4.3."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _side(cell: object) -> str:
    number = cell is None or isinstance(cell, int | float) and not isinstance(cell, bool)
    return _RIGHT if number else _LEFT


def _together(parts: Sequence[Part]) -> list[Part]:
    by_state: dict[str, list[Part]] = {}
    for part in parts:
        by_state.setdefault(part.state, []).append(part)
    return [
        Part(f"{len(same)} more, together", sum(part.size for part in same), state)
        for state, same in by_state.items()
    ]


def _span(part: Part, share: float) -> str:
    """One part; its label stays in the text where it does not fit, for readers without styles."""
    says, colour = f"{part.label} {part.size}", STATES[part.state]
    fits = share * _BAR >= _LETTER * len(says) + 8
    room = "padding-left:4px;font-size:11px" if fits else "font-size:0"
    style = (
        f"display:inline-block;box-sizing:border-box;vertical-align:top;overflow:hidden;"
        f"width:{100 * share:.3f}%;height:20px;{room};background-color:{colour};"
        f"color:{ink(colour)};border-right:1px solid transparent;background-clip:padding-box"
    )
    return f'<span title="{escape(says)}" style="{style}">{escape(says)} </span>'
