"""HTML text from values: what is escaped, what is cut, what a reader without styles gets."""

from __future__ import annotations

import html
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minisgl.display import (
    MOST,
    STATES,
    Html,
    Part,
    bar,
    card,
    contrast,
    counted,
    escape,
    folded,
    ink,
    line,
    swatch,
    table,
    visible,
)
from tests.seen import Seen

HOSTILE = "</td></table><script>alert('x')</script><img src=x onerror=\"alert(1)\">&lt;!--"
parts = st.lists(st.builds(Part, st.text(), st.integers(0, 10**6), st.sampled_from(list(STATES))))


@given(st.text(), st.integers(1, 60))
def test_visible_text_is_one_line_that_prints_and_is_not_too_long(text: str, most: int) -> None:
    seen = visible(text, most)
    assert all(c.isprintable() or c in "\u200c\u200d" for c in seen)
    assert "\n" not in seen and visible(seen, 10 * most) == seen
    assert len(seen) <= most * len("\\U0010ffff")
    if text.isprintable() and text == " ".join(text.split()):
        assert seen == text if len(text) <= most else seen == text[: most - 1] + "…"


def test_characters_that_hide_are_spelled_out() -> None:
    assert visible("a\x1b[31m b\x00\u202e c\ud800") == "a\\x1b[31m b\\x00\\u202e c\\ud800"
    assert visible("two\n\tlines") == "two lines"
    family = "\U0001f468\u200d\U0001f469"
    assert visible(family) == family


@given(st.text())
def test_escaped_text_reads_as_the_visible_text(text: str) -> None:
    page = escape(text)
    assert not set("<>\"'") & set(page)
    assert html.unescape(page) == visible(text)


def test_html_is_not_escaped_twice_and_none_is_a_dash() -> None:
    assert escape(escape("a < b")) == "a &lt; b"
    assert (escape(None), escape(7), escape(True)) == ("–", "7", "True")


@pytest.mark.parametrize(
    "make",
    [
        lambda text: card(text, text, line(text)),
        lambda text: table((text, text), [(text, text)]),
        lambda text: table((), [(text, text)]),
        lambda text: bar(text, [Part(text, 3, "prefill")]),
        lambda text: swatch("reused", text),
        lambda text: folded(text, line(text)),
    ],
)
def test_hostile_text_stays_text_wherever_it_is_put(make: Any) -> None:
    seen = Seen(make(HOSTILE))
    assert "<script>alert('x')</script>" in seen.words
    assert make(HOSTILE) == make(HOSTILE)
    assert len(make("<" * 10**6)) < 20_000


@given(st.lists(st.tuples(st.text(), st.integers(), st.none()), max_size=3 * MOST))
@example([("a", i, None) for i in range(MOST)])
@example([("a", i, None) for i in range(MOST + 1)])
def test_a_table_shows_its_first_rows_and_says_how_many_more(rows: list[tuple[Any, ...]]) -> None:
    page = table(("name", "number", "nothing"), rows)
    if not rows:
        assert page == ""
        return
    seen = Seen(page)
    heads, *body = seen.tables[0]
    assert heads == ["name", "number", "nothing"]
    assert body[:MOST] == [[visible(a), str(b), "–"] for a, b, _ in rows[:MOST]]
    more = len(rows) - MOST
    assert body[MOST:] == ([[f"and {more} more"]] if more > 0 else [])
    assert table(("name", "number", "nothing"), iter(rows[:MOST]), len(rows)) == page


def test_numbers_stand_to_the_right_under_their_head() -> None:
    seen = Seen(table(("who", "how many", "is it"), [("r0", 3, True), ("r1", None, False)]))
    sides = [style["text-align"] for style in seen.styles if "text-align" in style]
    assert sides == ["left", "right", "left"] + ["left", "right", "left"] * 2


@given(parts)
def test_a_bar_says_all_that_it_draws(some: list[Part]) -> None:
    page = bar("tokens", some)
    some = [part for part in some if part.size]
    if not some:
        assert page == ""
        return
    seen = Seen(page)
    assert len(seen.labels) == 1 and seen.labels[0].startswith("tokens: ")
    shares = [float(style["width"].rstrip("%")) for style in seen.styles[1:]]
    assert sum(shares) == pytest.approx(100, abs=0.05)
    sizes = [part.size for part in some]
    assert shares[:MOST] == pytest.approx([100 * n / sum(sizes) for n in sizes[:MOST]], abs=0.001)
    assert len(shares) <= MOST + len(STATES)
    for part in some[:MOST]:
        assert visible(f"{part.label} {part.size}") in seen.words


def test_parts_beyond_the_most_are_put_together_by_state() -> None:
    many = [Part(f"r{i}", 7, "prefill" if i % 2 else "decode") for i in range(MOST + 5)]
    seen = Seen(bar("rows", many))
    assert "3 more, together 21" in seen.words and "2 more, together 14" in seen.words
    assert [s["background-color"] for s in seen.styles[-2:]] == [
        STATES["decode"],
        STATES["prefill"],
    ]


def test_a_label_that_does_not_fit_is_still_there_for_who_reads() -> None:
    seen = Seen(bar("steps", [Part("waiting", 1, "waiting"), Part("decode", 999, "decode")]))
    assert [style["font-size"] for style in seen.styles[1:]] == ["0", "11px"]
    assert "waiting 1 decode 999" in seen.words


def test_what_is_folded_is_there_and_nothing_is_not() -> None:
    assert Seen(folded("3 events", line("one"))).words == "3 events\none\n"
    assert folded("3 events", Html(), Html()) == ""


@pytest.mark.parametrize("colour", sorted(STATES.values()))
def test_letters_can_be_read_on_every_state(colour: str) -> None:
    assert contrast(ink(colour), colour) >= 4.5  # WCAG 2.2, 1.4.3, level AA


def test_contrast_is_as_the_guideline_has_it() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=0.001)


def test_every_state_has_a_colour_of_its_own() -> None:
    assert len(set(STATES.values())) == len(STATES)
    assert set(STATES) == set("waiting prefill decode reused evictable evicted fault free".split())


def test_things_are_counted_in_words() -> None:
    assert [counted(n, "page") for n in (0, 1, 2, 12345)] == [
        "0 pages",
        "1 page",
        "2 pages",
        "12,345 pages",
    ]
