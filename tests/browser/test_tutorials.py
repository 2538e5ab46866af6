"""The tutorials in JupyterLab, as their reader runs them. That they show what they store is nbval's
part; here it is that a browser shows it, without an error and without the internet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.browser.pages import Notebook

TUTORIALS = Path(__file__).resolve().parent.parent.parent / "tutorials"


def test_the_first_tutorial_runs_and_is_seen(open_notebook: Callable[..., Notebook]) -> None:
    book = open_notebook(TUTORIALS / "0 Five minutes.ipynb")
    cells = book.run_all()
    assert [cell.number for cell in cells if cell.type == "code"] == list(range(1, 17))
    assert book.value("price.text") == "One kite costs 12 coins."
    shown = [number for number, cell in enumerate(cells) if "One kite costs 12 coins." in cell.text]
    assert "One kite costs 12 coins." in book.output(shown[0]).inner_text()
    pictures = book.page.locator(".jp-OutputArea img")
    assert pictures.count() == 1
    assert pictures.first.evaluate("image => image.naturalWidth") > 300
