"""The renderer on a run that goes on: fed chunk by chunk, it forgets what the engine forgets, and
says of all that is left what a renderer says that forgot nothing."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from minisgl.core import SamplingParams
from minisgl.engine.engine import Engine
from minisgl.inspector import film
from minisgl.inspector.film import Film
from tests.hash_engine import hash_engine

if TYPE_CHECKING:
    from playwright.sync_api import Page

Opened = Callable[..., "Page"]
FOLDER = Path(film.__file__).parent
# Two models of a kernel that is not there: one whose run is live, and one that only keeps.
_MOUNT = """async (source) => {
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const { default: widget } = await import(url);
  const mount = (id, live) => {
    const values = { cursor: null, run: 0, selected: null, films: [], status: {
      mode: "live", runs: [{ name: "run", live, closed: false, plan: null, breakpoints: [] }],
      conditions: [], forkable: {}, divergence: null, message: "" } };
    const handlers = {};
    const model = {
      get: (name) => values[name], save_changes: () => {}, off: () => {}, send: () => {},
      on: (name, handler) => (handlers[name] ||= []).push(handler),
      set: (name, value) => {
        values[name] = value;
        for (const handler of handlers[`change:${name}`] || []) handler();
      },
    };
    widget().render({ model, el: document.getElementById(id) });
    return (text) => {
      const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
      for (const handler of handlers["msg:custom"]) handler({ chunk: 0, reset: false }, [bytes]);
    };
  };
  const feeds = [mount("bounded", true), mount("whole", false)];
  window.feed = (texts) => texts.forEach((text) => feeds.forEach((feed) => feed(text)));
}"""


@pytest.fixture
def page(open_file: Opened, tmp_path: Path) -> Page:
    style = (FOLDER / "inspector.css").read_text()
    path = tmp_path / "live.html"
    path.write_text(
        f"<!doctype html><title>live</title><link rel=icon href=data:,><style>{style}</style>"
        "<div id=bounded></div><div id=whole></div>"
    )
    page = open_file(path, 1200, 2000)
    page.evaluate(_MOUNT, (FOLDER / "inspector.js").read_text())
    return page


def drawn(page: Page, which: str, step: int) -> dict[str, Any]:
    view = "([id, k]) => document.querySelector(`#${id} > *`).minisgl.view(k)"
    found: dict[str, Any] = page.evaluate(view, [which, step])
    return found


def bytes_of(page: Page) -> int:
    size: int = page.evaluate("document.querySelector('#bounded > *').minisgl.bytes()")
    return size


def busy(engine: Engine, steps: int) -> Iterator[None]:
    """Everything happens, again and again: reuse, splits, eviction, preemption, aborts."""
    for number in range(steps // 2):
        if number % 2 == 0:
            prompt = [1 + number % 4] * 6 + [5 + number % 7] * (number % 9)
            longer = 3 + 40 * (number % 40 == 0)
            engine.add(prompt, SamplingParams(max_tokens=longer, ignore_eos=True))
        if number % 50 == 7:
            engine.abort(max(engine.requests))
        engine.run(max_steps=2)
        yield


def feed(page: Page, reader: Film, engine: Engine, steps: int, each: int) -> None:
    chunks = []
    for number, _ in enumerate(busy(engine, steps)):
        if number % each == 0:
            chunks.append(base64.b64encode(reader.read()).decode())
    chunks.append(base64.b64encode(reader.read()).decode())
    page.evaluate("(chunks) => feed(chunks)", [chunk for chunk in chunks if chunk])


@pytest.mark.parametrize("overlap", [False, True])
def test_a_live_run_is_bounded_like_its_history_and_what_is_left_is_whole(
    page: Page, overlap: bool
) -> None:
    engine = hash_engine(
        num_pages=40, page_size=2, max_running=5, max_step_tokens=12, max_seq_len=70, history=150,
        depth=2 if overlap else 1, admission="optimistic", expected_output=1, policy="mixed",
    )  # fmt: skip
    reader = Film(engine.trace)
    feed(page, reader, engine, 500, 9)
    early = bytes_of(page)
    feed(page, reader, engine, 1000, 5)
    assert engine.trace.history.first > 700 and bytes_of(page) < 2 * early
    first: int = drawn(page, "bounded", 0)["cursor"]
    last = len(engine.trace) - 1
    assert engine.trace.history.first - 128 <= first <= engine.trace.history.first
    said = page.locator("#bounded .msgl-of")
    assert said.inner_text() == f"of {first} … {last}"
    assert str(first) in (said.get_attribute("title") or "")
    for step in (first, first + 1, first + 2, last - 90, first + 7, last - 1, last, first):
        some, every = drawn(page, "bounded", step), drawn(page, "whole", step)
        assert some["cursor"] == every["cursor"] == step
        for view in ("sentence", "pages"):
            assert some[view] == every[view], f"{view} at step {step}"
        assert some["batch"]["rows"] == every["batch"]["rows"]
        assert some["batch"]["why"] == every["batch"]["why"]
        assert some["batch"]["life"] == every["batch"]["life"]
        names = ("id", "parent", "depth", "size", "used", "holders", "text", "hit", "inserted")
        told = [
            [[node[name] for name in names] for node in seen["tree"] if node["state"] != "evicted"]
            for seen in (some, every)
        ]
        assert told[0] == told[1], f"the tree at step {step}"
        assert some["log"] == [line for line in every["log"] if line[0] >= first]
        lanes = {lane["rid"]: lane for lane in every["lanes"]}
        for lane in some["lanes"]:
            whole = lanes[lane["rid"]]
            whole["waiting"] = [[max(a, first), b] for a, b in whole["waiting"] if b >= first]
            assert lane == whole
        here = {lane["rid"] for lane in some["lanes"]}
        ran = {row.rid for k in range(first, last + 1) for row in seen_rows(engine, k)}
        assert ran <= here


def seen_rows(engine: Engine, step: int) -> tuple[Any, ...]:
    """The rows of a step that the engine still has."""
    history = engine.trace.history
    return history.record(step).batch.rows if step >= history.first else ()
