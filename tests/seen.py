"""HTML as somebody reads it who sees no style: its words, its tables, its tags."""

from __future__ import annotations

from html.parser import HTMLParser

# What JupyterLab keeps of a notebook that it does not trust, looked up in its sanitizer.
KEPT_STYLES = {
    "background-clip",
    "background-color",
    "border",
    "border-right",
    "box-sizing",
    "color",
    "display",
    "font-size",
    "height",
    "line-height",
    "margin",
    "max-width",
    "overflow",
    "padding-left",
    "text-align",
    "vertical-align",
    "white-space",
    "width",
}
TAGS = {"div", "b", "span", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"}
ATTRIBUTES = {"style", "title", "scope", "colspan", "role", "aria-label"}


class Seen(HTMLParser):
    """What a page shows. Raises AssertionError for a page that is not well formed, or not ours."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.words = ""  # all text, tags taken away
        self.tables: list[list[list[str]]] = []  # of rows of cells
        self.styles: list[dict[str, str]] = []
        self.labels: list[str] = []  # for those who do not see a bar
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    @property
    def facts(self) -> dict[str, str]:
        """Every row of two cells in every table."""
        return {row[0]: row[1] for table in self.tables for row in table if len(row) == 2}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag begins."""
        assert tag in TAGS, f"<{tag}> is none that a card has"
        assert {name for name, _ in attrs} <= ATTRIBUTES, attrs
        self._open.append(tag)
        given = dict(attrs)
        if style := given.get("style"):
            self.styles.append(dict(part.split(":", 1) for part in style.split(";")))
            assert set(self.styles[-1]) <= KEPT_STYLES, style
        self.labels += [given["aria-label"] or ""] if "aria-label" in given else []
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        """A tag ends."""
        assert self._open.pop() == tag, f"</{tag}> closes another tag"
        self.words += (
            "\n" if tag in ("div", "tr", "summary") else " " if tag in ("td", "th") else ""
        )

    def handle_data(self, data: str) -> None:
        """Text."""
        self.words += data
        if "td" in self._open or "th" in self._open:
            self.tables[-1][-1][-1] += data

    def handle_comment(self, data: str) -> None:
        """A comment: there are none."""
        raise AssertionError(f"a comment: {data!r}")

    def handle_decl(self, decl: str) -> None:
        """A declaration: there are none."""
        raise AssertionError(f"a declaration: {decl!r}")
