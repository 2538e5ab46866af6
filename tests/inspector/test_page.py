"""The page that ``trace.save_html`` writes; ``tests/browser`` opens it."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import minisgl
from minisgl.core import SamplingParams
from minisgl.inspector.page import page
from minisgl.trace import Trace
from tests.hash_engine import hash_engine
from tests.inspector.films import Seen, holds_against

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">\x00\x1b\u2028'


class Tags(HTMLParser):
    """Every tag of a page, and the text of its script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.script = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action")]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.script += data


class Hostile:
    """A codec whose every token is hostile text."""

    def decode(self, ids: Sequence[int]) -> str:
        return HOSTILE * len(ids)

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(name)


def run(codec: Any = None) -> Trace:
    engine = hash_engine(page_size=2, codec=codec)
    for first in (1, 1, 2):
        engine.add([first] * 7, SamplingParams(max_tokens=6))
    engine.run()
    return engine.trace


def data(text: str) -> dict[str, Any]:
    """What the page's script is given."""
    found = re.search(r'mountPage\(document\.getElementById\("inspector"\), (\{.*\})\);', text)
    assert found is not None
    given: dict[str, Any] = json.loads(found[1])
    return given


def films(text: str) -> list[bytes]:
    return [zlib.decompress(base64.b64decode(film)) for film in data(text)["films"]]


def test_a_page_holds_the_whole_film_and_asks_for_nothing(tmp_path: Path) -> None:
    trace = run()
    trace.save_html(tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text(encoding="utf-8")
    (film,) = films(text)
    holds_against(trace, Seen().read(film))
    tags = Tags(text)
    assert tags.links == []
    assert set(tags.tags) == {
        *("html", "head", "meta", "title", "style", "body", "main", "noscript", "script")
    }
    assert "default-src 'none'" in text


def test_hostile_text_stays_text() -> None:
    trace = run(Hostile())
    text = page([(HOSTILE, trace)])
    assert Tags(text).tags.count("script") == 1
    assert data(text)["status"]["runs"][0]["name"] == HOSTILE
    (film,) = films(text)
    assert HOSTILE in Seen().read(film).words.values()
    assert "alert(" not in text.replace(json.dumps(HOSTILE)[1:-1].replace("<", "\\u003c"), "")


def test_a_redacted_page_holds_no_text() -> None:
    (film,) = films(page([("run", run(Hostile()))], redact=True))
    assert b"alert" not in film and Seen().read(film).words == {}


def test_two_runs_and_where_they_part_fit_on_one_page() -> None:
    parts = {"step": 2, "words": "a prefills r1"}
    text = page([("a", run()), ("b", run())], divergence=parts)
    assert len(films(text)) == 2 and data(text)["status"]["divergence"] == parts


def test_ten_thousand_steps_of_eight_rows_fit_into_two_megabytes(tmp_path: Path) -> None:
    random, sampling = Random(1), SamplingParams(max_tokens=50, ignore_eos=True)
    system = [random.randrange(300, 1270) for _ in range(64)]
    engine = minisgl.load("tiny", runner="hash", num_pages=4000, max_running=8)
    while len(engine.trace) < 10_000:
        while len(engine.queue) < 4:
            length = random.randrange(20, 200)
            engine.add(system + [random.randrange(300, 1270) for _ in range(length)], sampling)
        engine.step()
    rows = sum(len(record.batch.rows) for record in engine.trace)
    assert rows > 70_000
    engine.trace.save_html(tmp_path / "long.html")
    assert (tmp_path / "long.html").stat().st_size < 2_000_000
