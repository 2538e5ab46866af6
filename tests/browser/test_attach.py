"""The inspector on a server, in a real JupyterLab."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from threading import Thread

from tests.browser.pages import Notebook
from tests.browser.test_inspector import Seen
from tests.server.served import Served


def ask(server: Served) -> None:
    body = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 9, "ignore_eos": True}
    request = urllib.request.Request(
        f"{server.url}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=60).read()


def test_a_server_is_followed_paused_stepped_and_resumed(
    open_notebook: Callable[..., Notebook],
) -> None:
    with Served("--admin-key", "key") as server:
        attach = f"import minisgl\nview = minisgl.attach({server.url!r}, admin_key='key')\nview"
        book = open_notebook([attach], 1400, 1300)
        book.run_all()
        seen = Seen(book, book.output(0))
        ask(server)
        assert book.wait_for("len(view.trace) >= 9 and view.cursor == len(view.trace) - 1")
        seen.is_at(book.value("view.cursor"))
        assert seen.root.get_by_text("Rewind here").is_hidden()
        seen.press("Pause")
        seen.root.get_by_text("Resume").wait_for()
        waiting = Thread(target=ask, args=(server,))
        waiting.start()
        at = book.value("len(view.trace)")
        seen.press("step (")
        assert book.wait_for(f"len(view.trace) == {at + 1}")
        seen.is_at(at)
        seen.press("Resume")
        waiting.join(60)
        assert not waiting.is_alive()
        assert book.wait_for(f"len(view.trace) >= {at + 9}")
    seen.root.get_by_text("closed").first.wait_for()
