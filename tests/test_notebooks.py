"""The notebooks are fit to be read; that they run and show what they store is nbval's part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.notebook_hygiene import MAX_BYTES, MAX_LINES, ROOT, main, notebooks, problems


def test_every_notebook_is_fit_to_be_read() -> None:
    found = {str(path.relative_to(ROOT)): problems(path) for path in notebooks()}
    assert not any(found.values()), found


def markdown(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def code(source: str, count: int | None, *outputs: dict[str, Any]) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "metadata": {},
        "source": source,
        "execution_count": count,
        "outputs": list(outputs),
    }


def shown(metadata: dict[str, Any] | None = None, **data: str) -> dict[str, Any]:
    kinds = {name.replace("__", "/"): value for name, value in data.items()}
    return {"output_type": "display_data", "data": kinds, "metadata": metadata or {}}


TITLE = markdown("# A title")
SAID = {"output_type": "stream", "name": "stdout", "text": "1\n"}
FAILED = {"output_type": "error", "ename": "KeyError", "evalue": "", "traceback": []}
WIDGET = {
    "output_type": "display_data",
    "data": {"application/vnd.jupyter.widget-view+json": {}},
    "metadata": {},
}


@pytest.fixture
def check(tmp_path: Path) -> Any:
    """A function that writes cells as a notebook and returns what is wrong with it."""

    def write(*cells: dict[str, Any], **metadata: Any) -> list[str]:
        path = tmp_path / "book.ipynb"
        book = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
        path.write_text(json.dumps(book))
        return problems(path)

    return write


def test_a_notebook_that_was_run_top_to_bottom_passes(check: Any) -> None:
    picture = shown(image__png="iVBO", text__plain="A tree of three nodes")
    described = shown({"alt": "lanes of two requests"}, image__png="iVBO")
    by_kind = shown({"image/png": {"alt": "lanes"}}, image__png="iVBO")
    shows = code("2", 2, picture, described, by_kind)
    assert check(TITLE, code("1", 1, SAID), code("", None), shows) == []


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ([code("1", 1, SAID)], "title"),
        ([TITLE, code("1", 2, SAID)], "was run as number 2"),
        ([TITLE, code("1", None, SAID)], "was run as number None"),
        ([TITLE, code("1", 1)], "shows nothing"),
        ([TITLE, code("x\n" * (MAX_LINES + 1), 1, SAID)], f"has {MAX_LINES + 1} lines"),
        ([TITLE, code("plot();", 1, SAID)], "ends with ';'"),
        ([TITLE, code("1", 1, FAILED)], "stores an error (KeyError)"),
        ([TITLE, code("1", 1, WIDGET)], "stores a widget view"),
        ([TITLE, code("1", 1, shown(image__png="iVBO"))], "without alternative text"),
        ([TITLE, code("1", 1, shown(image__png="i", text__plain="<Figure size>"))], "alternative"),
        ([TITLE, code("1", 1, shown(text__html="<img src='a'>"))], "alternative text: <img"),
        ([TITLE, code("1", 1, shown(text__html="<svg width=1>"))], "alternative text: <svg"),
        ([TITLE, markdown("![](a.png)"), code("1", 1, SAID)], "alternative text: ![]"),
    ],
)
def test_what_is_wrong_with_a_notebook_is_said(
    check: Any, cells: list[dict[str, Any]], sentence: str
) -> None:
    found = check(*cells)
    assert len(found) == 1
    assert sentence in found[0]


def test_stored_widget_state_is_found(check: Any) -> None:
    assert "widget state" in check(TITLE, code("1", 1, SAID), widgets={"state": {}})[0]


def test_a_large_notebook_is_found(check: Any) -> None:
    assert f"at most {MAX_BYTES}" in check(TITLE, markdown("x" * MAX_BYTES))[0]


def test_the_command_names_file_and_problem_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "no.ipynb"
    path.write_text("{}")
    assert main([str(path)]) == 1
    assert f"{path}: is not a notebook" in capsys.readouterr().out
