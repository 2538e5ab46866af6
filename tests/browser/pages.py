"""Pages in a real browser, for tests: an open notebook, and what went wrong on a page."""

from __future__ import annotations

import ast
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tests.lab_server import TOKEN, Server

if TYPE_CHECKING:  # playwright may be missing where the tests are collected
    from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page, Request, Response

PATIENCE = 60  # seconds that a busy machine may take
Theme = Literal["light", "dark", "high contrast"]
_THEMES: dict[Theme, str] = {
    "light": "JupyterLab Light",
    "dark": "JupyterLab Dark",
    "high contrast": "JupyterLab Dark High Contrast",
}
_SCRIPT = Path(__file__).with_name("notebook.js")


class Watch:
    """What goes wrong in a browser context: errors in the console, exceptions, failed requests and
    requests to elsewhere. Notes each as a sentence; what a test provokes it must ``allow`` first.

    home: what the address of every request must begin with.
    """

    def __init__(self, context: BrowserContext, home: str) -> None:
        self._homes = (home, home.replace("http://", "ws://", 1), "data:", "blob:")
        self._seen: list[str] = []
        self._allowed: list[str] = []
        context.on("console", self._console)
        context.on("weberror", lambda error: self.note(f"exception: {error.error.stack}"))
        context.on("request", lambda request: self._address(request.url))
        context.on("requestfailed", self._failed)
        context.on("response", self._response)
        context.on("page", lambda page: page.on("websocket", lambda ws: self._address(ws.url)))

    def allow(self, part: str) -> None:
        """What holds this text is no problem."""
        self._allowed.append(part)

    def note(self, problem: str) -> None:
        self._seen.append(problem)

    def problems(self) -> list[str]:
        """All that was seen and not allowed, in order."""
        return [text for text in self._seen if not any(part in text for part in self._allowed)]

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "assert"):
            self.note(f"console: {message.text} ({message.location.get('url')})")

    def _address(self, url: str) -> None:
        if not url.startswith(self._homes):
            self.note(f"left the machine: {url}")

    def _failed(self, request: Request) -> None:
        # JupyterLab sets a picture's relative address before it resolves it, and so withdraws the
        # first request; a picture that cannot be had is answered with an error, which is a problem
        if request.resource_type == "image" and request.failure == "net::ERR_ABORTED":
            return
        self.note(f"failed: {request.method} {request.url}: {request.failure}")

    def _response(self, response: Response) -> None:
        if response.status >= 400:
            self.note(f"failed: {response.request.method} {response.url}: {response.status}")


class Cell(NamedTuple):
    """A cell as it is now. number: None if it was not run; outputs: as nbformat has them."""

    type: str
    source: str
    number: int | None
    outputs: list[dict[str, Any]]
    tags: list[str]

    @property
    def text(self) -> str:
        """All of its outputs that is plain text."""
        parts = (out.get("text") or out.get("data", {}).get("text/plain") for out in self.outputs)
        return "".join("".join(part) for part in parts if part)


class Notebook:
    """A notebook open in JupyterLab, with a kernel of its own. What it is asked to do is done when
    the call returns; after PATIENCE it raises. page: playwright's, for all that is not here."""

    def __init__(self, page: Page, watch: Watch, server: Server, name: str) -> None:
        """Opens the notebook of that name, which the server serves, in an empty page."""
        self.page, self.watch = page, watch
        self._server, self._begin = server, len(server.log)
        page.add_init_script(path=_SCRIPT)
        # a workspace of its own, or JupyterLab would open what the last test had open, too
        page.goto(f"{server.address}/lab/workspaces/{Path(name).stem}/tree/{name}?token={TOKEN}")
        self._wait("book.kernel()?.status === 'idle'")
        self._do("book.ready()")
        self._do("jupyterapp.commands.execute('application:toggle-left-area')")
        self.theme("light")  # the server remembers the last test's

    def run_all(self) -> list[Cell]:
        """Run every cell, as Run All does: the cells, each with its count and its new outputs.
        Raises AssertionError with the cell and its traceback if one fails that is not tagged
        raises-exception."""
        self._do("book.runAll()")
        self._wait_until_idle()
        cells = self.cells()
        for cell in cells:
            if cell.type == "code" and cell.source.strip():
                _raise_if_failed(cell)
                assert cell.number is not None, f"was not run: {cell.source}"
        return cells

    def add(self, source: str) -> Locator:
        """Append a code cell and run it: its outputs on the page. Raises like ``run_all``."""
        number = self._do("book.append(argument)", source)
        self._wait_until_idle()
        _raise_if_failed(self.cells()[number])
        return self.output(number)

    def cells(self) -> list[Cell]:
        return [Cell(**cell) for cell in self._do("book.cells()")]

    def output(self, number: int) -> Locator:
        """Where cell ``number`` (Markdown counts, from 0) shows its outputs."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(number).locator(".jp-OutputArea")

    def run(self, code: str) -> None:
        """Run code in the notebook's kernel, in no cell; widgets follow as if a cell had run.
        Raises RuntimeError with the kernel's traceback."""
        self._run(code, {})
        self._wait_until_idle()

    def value(self, expression: str) -> Any:
        """The value of a Python expression in the notebook's kernel; it goes through JSON."""
        reply = self._run("", {"value": f"__import__('json').dumps({expression})"})
        answer = reply["user_expressions"]["value"]
        if answer["status"] != "ok":
            raise RuntimeError("\n".join([expression, *answer["traceback"]]))
        return json.loads(ast.literal_eval(answer["data"]["text/plain"]))

    def wait_for(self, expression: str) -> Any:
        """Ask the kernel until the expression is true, and return its value: for what a click
        sets going. Raises TimeoutError."""
        until = time.monotonic() + PATIENCE
        while not (value := self.value(expression)):
            if time.monotonic() > until:
                raise TimeoutError(f"{expression} is {value!r} after {PATIENCE} s")
            self.page.wait_for_timeout(50)
        return value

    def restart(self) -> None:
        """Restart the kernel, as its user would; the page stays."""
        self._do("book.kernel().restart()")
        self._wait_until_idle()

    def theme(self, theme: Theme) -> None:
        """Change JupyterLab's theme, and wait until its style sheet counts."""
        # JupyterLab's veil during a change; it throws if a change begins before it is gone
        name, no_veil = _THEMES[theme], "document.getElementById('jupyterlab-splash') === null"
        self._wait(no_veil)
        self._do("jupyterapp.commands.execute('apputils:change-theme', {theme: argument})", name)
        self._wait("document.body.dataset.jpThemeName === argument", name)
        self._wait(no_veil)

    def pictures(self, what: Locator, folder: Path, stem: str) -> list[Path]:
        """Screenshots of a part of the page in every theme: ``folder/stem-light.png``,
        ``-dark`` and ``-high-contrast``, in this order. Ends in the light theme."""
        paths = []
        for theme in _THEMES:
            self.theme(theme)
            paths.append(folder / f"{stem}-{theme.replace(' ', '-')}.png")
            what.screenshot(path=paths[-1], animations="disabled")
        self.theme("light")
        return paths

    def problems(self) -> list[str]:
        """The page's, and what the kernel raised where no cell shows it: handling a widget."""
        for text in self._do("book.trouble()"):
            self.watch.note(f"kernel: {text}")
        log = self._server.log
        if "Traceback" in log[self._begin :]:
            self.watch.note(f"server: {log[self._begin :]}")
        self._begin = len(log)
        return self.watch.problems()

    def _wait_until_idle(self) -> None:
        self._wait("book.idle()")

    def _run(self, code: str, expressions: dict[str, str]) -> Any:
        reply = self._do("book.run(...argument)", [code, expressions])
        if reply["status"] != "ok":
            raise RuntimeError("\n".join([code, *reply.get("traceback", [reply["status"]])]))
        return reply

    def _do(self, script: str, argument: object = None) -> Any:
        within = f"argument => book.within({PATIENCE * 1000}, (async () => await {script})())"
        return self.page.evaluate(within, argument)

    def _wait(self, condition: str, argument: object = None) -> None:
        script = f"argument => {condition}"
        self.page.wait_for_function(script, arg=argument, timeout=PATIENCE * 1000)


def _raise_if_failed(cell: Cell) -> None:
    for output in cell.outputs:
        if output["output_type"] == "error" and "raises-exception" not in cell.tags:
            raise AssertionError("\n".join([cell.source, *output["traceback"]]))
