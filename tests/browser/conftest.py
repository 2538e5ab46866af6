"""A real Chromium and a real JupyterLab, one of each for this folder; skipped where there is none.

``open_notebook`` and ``open_file`` give pages; when a test ends, what went wrong on any of them
fails it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.pages import PATIENCE, Notebook, Watch
from tests.lab_server import Server, serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

INSTALLED = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--no-sandbox",  # only our own pages are opened, and a container's root has no sandbox
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # whatever asks for a name, be it the browser itself, does not leave the machine
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium without a window. It ends with this folder: while playwright's synchronous interface
    is open, no other test could run an event loop."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = next(filter(None, map(shutil.which, INSTALLED)), own)
        if not Path(path).exists():
            pytest.skip("no Chromium: apt-get install chromium, or playwright install chromium")
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def jupyter(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """JupyterLab; the notebooks of the tests lie flat in its root."""
    root, private = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")
    with serve(root, private, ["--LabApp.expose_app_in_browser=True"]) as server:
        yield server


@pytest.fixture
def open_notebook(browser: Browser, jupyter: Server) -> Iterator[Callable[..., Notebook]]:
    """A function that opens a copy of a notebook, given its path or the sources of its code cells,
    in a window of its own, ``width`` x ``height`` CSS pixels.

    At the end no page may have a problem that its ``watch`` does not allow. The left side bar is
    closed; of the width, about 180 pixels are not the outputs'.
    """
    opened: list[Notebook] = []
    watched: list[tuple[Watch, BrowserContext]] = []

    def open_notebook(
        source: Path | Sequence[str], width: int = 1000, height: int = 1400
    ) -> Notebook:
        # no name twice: JupyterLab keeps what was open by the name
        name = f"notebook-{len(list(jupyter.root.glob('*.ipynb')))}.ipynb"
        if isinstance(source, Path):
            shutil.copy(source, jupyter.root / name)
            if (pictures := source.parent / "pictures").is_dir():  # which its text shows
                shutil.copytree(pictures, jupyter.root / "pictures", dirs_exist_ok=True)
        else:
            (jupyter.root / name).write_text(json.dumps(_notebook(source)))
        context = browser.new_context(viewport={"width": width, "height": height})
        context.set_default_timeout(PATIENCE * 1000)
        watch = Watch(context, f"{jupyter.address}/")
        watched.append((watch, context))
        opened.append(Notebook(context.new_page(), watch, jupyter, name))
        return opened[-1]

    yield open_notebook
    for notebook in opened:
        notebook.problems()  # the watch knows them now
    jupyter.stop_kernels()
    _end(watched)


def _notebook(sources: Sequence[str]) -> dict[str, object]:
    cell: dict[str, object] = {
        "cell_type": "code",
        "metadata": {},
        "execution_count": None,
        "outputs": [],
    }
    cells = [cell | {"id": str(number), "source": text} for number, text in enumerate(sources)]
    python = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    return {"cells": cells, "metadata": python, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture
def open_file(browser: Browser) -> Iterator[Callable[..., Page]]:
    """A function that opens a file from disk with the network off, as one opens what ``save_html``
    wrote. At the end the page may have asked for nothing but itself, and have no error."""
    watched: list[tuple[Watch, BrowserContext]] = []

    def open_file(path: Path, width: int = 1000, height: int = 1400) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
        context.set_default_timeout(PATIENCE * 1000)
        watched.append((Watch(context, path.resolve().as_uri()), context))
        page = context.new_page()
        page.goto(path.resolve().as_uri())
        return page

    yield open_file
    _end(watched)


def _end(watched: Sequence[tuple[Watch, BrowserContext]]) -> None:
    problems = [problem for watch, _ in watched for problem in watch.problems()]
    for _, context in watched:
        context.close()
    if problems:
        pytest.fail("\n".join(["the page had problems:", *problems]), pytrace=False)
