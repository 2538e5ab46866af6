"""What the browser tests stand on: that they see what goes wrong, and what the kernel thinks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.pages import PATIENCE, Notebook, Watch

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FRAME = """\
from IPython.display import HTML
HTML("<p style='border: 9px solid var(--jp-border-color1)'>framed")"""
BUTTON = """\
import ipywidgets
pressed = 0
def press(button):
    global pressed
    pressed += 1
    if pressed == 2:
        raise ValueError("pressed too often")
button = ipywidgets.Button(description="Press")
button.on_click(press)
button"""


def test_a_click_reaches_the_kernel_and_what_fails_there_is_a_problem(
    open_notebook: Callable[..., Notebook],
) -> None:
    book = open_notebook([BUTTON])
    book.run_all()
    button = book.output(0).get_by_role("button", name="Press")
    button.click()
    assert book.wait_for("pressed == 1") is True
    assert book.problems() == []
    book.run("button.description = 'Again'")
    book.output(0).get_by_role("button", name="Again").click()
    book.wait_for("pressed == 2")
    (problem,) = book.problems()
    assert "pressed too often" in problem
    book.watch.allow("pressed too often")


def test_cells_can_be_added_and_drawn_in_every_theme_and_what_fails_says_so(
    open_notebook: Callable[..., Notebook], tmp_path: Path
) -> None:
    book = open_notebook(["x = 1", "x / 0"])
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        book.run_all()
    assert book.add("print(x + 1)").inner_text().strip() == "2"
    pictures = book.pictures(book.add(FRAME).locator("p"), tmp_path, "frame")
    assert [path.stem for path in pictures] == ["frame-light", "frame-dark", "frame-high-contrast"]
    assert len({path.read_bytes() for path in pictures}) == 3
    with pytest.raises(RuntimeError, match="NameError"):
        book.value("y")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        book.run("x / 0")
    book.restart()
    with pytest.raises(RuntimeError, match="NameError"):
        book.value("x")


BAD = """\
<!doctype html><title>bad</title><link rel="icon" href="data:,">
<script>
console.error("a bad word");
new WebSocket("ws://example.org/");
fetch("http://example.org/").catch(() => 0);
fetch("http://127.0.0.1:9/").catch(() => 0);
setTimeout(() => { throw new Error("a bad end"); });
</script>"""
SEEN = (
    "console: a bad word",
    "exception: Error: a bad end",
    "left the machine: ws://example.org/",
    "left the machine: http://example.org/",
    "left the machine: http://127.0.0.1:9/",
    "failed: GET http://example.org/",
)


def test_every_kind_of_problem_is_seen(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text(BAD)
    context = browser.new_context(offline=True)
    watch = Watch(context, path.as_uri())
    page = context.new_page()
    page.goto(path.as_uri())
    for sentence in SEEN:
        until = time.monotonic() + PATIENCE
        while not any(problem.startswith(sentence) for problem in watch.problems()):
            assert time.monotonic() < until, (sentence, watch.problems())
            page.wait_for_timeout(20)
    watch.allow("a bad word")
    assert not any("a bad word" in problem for problem in watch.problems())
    assert any("a bad end" in problem for problem in watch.problems())
    context.close()


def test_a_page_that_needs_nothing_has_no_problem(
    open_file: Callable[..., Page], tmp_path: Path
) -> None:
    path = tmp_path / "good.html"
    path.write_text("<!doctype html><title>good</title><p>All is here.")
    assert open_file(path).inner_text("p") == "All is here."
