"""How fast the inspector draws large runs: in a real browser without a window, by its own clock.

Needs playwright and a Chromium (the extra ``[dev]``). The page is the one that ``trace.save_html``
writes, so what is measured is decoding, laying out and drawing, on the processor alone.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from minisgl.build import load
from minisgl.core import SamplingParams
from minisgl.trace import Trace

if TYPE_CHECKING:  # it may be missing
    from playwright.sync_api import CDPSession

CHROMIUMS: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PAINT, MOVE = 1000.0, 50.0  # milliseconds that a first paint and a cursor move may take
_ROOT: Final = "document.querySelector('#inspector > *')"
# Moves the cursor as its slider does, and waits until the next frame has been drawn.
_MOVED: Final = """async (k) => {
  const slider = document.querySelector('#inspector input[type=range]');
  const began = performance.now();
  slider.value = k;
  slider.dispatchEvent(new Event('input'));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - began;
}"""


class Seen(NamedTuple):
    """A run on a screen; times in milliseconds. heap: bytes that the page's script holds.

    A move takes from the slider to the frame, waiting for the screen's next beat included; computed
    is the page's own thread alone, which a busy machine slows down less.
    """

    what: str
    first_paint: float  # from the script's start: the film is decoded and every view drawn
    move: float  # to any step, median
    slowest_move: float
    computed: float  # of a move to any step, median
    most_computed: float
    play: float  # to the next step, median
    heap: int
    page: int  # bytes of the file


def missing() -> str | None:
    """What is not there to measure with, in words."""
    try:
        import playwright  # noqa: F401
    except ModuleNotFoundError:
        return "left out: it needs playwright (pip install 'minisgl[dev]')"
    if not any(map(shutil.which, CHROMIUMS)):
        return "left out: it needs a Chromium (apt-get install chromium)"
    return None


def scenes(quick: bool) -> Iterator[tuple[str, Callable[[], Trace]]]:
    """Runs of the sizes that the inspector is made for, a tenth of them if quick."""
    part = 10 if quick else 1
    yield f"{10_000 // part:,} steps of 8 rows", lambda: _long(10_000 // part)
    yield f"256 lanes at once, {400 // part} steps", lambda: _wide(400 // part)
    yield f"{100_000 // part:,} pages, {20_000 // part:,} nodes", lambda: _tree(20_000 // part)


def look(what: str, trace: Trace, moves: int = 40) -> Seen:
    """Open a run's page, move its cursor about, and say how long it took."""
    from playwright.sync_api import sync_playwright

    random, last = Random(0), len(trace) - 1
    path = next(filter(None, map(shutil.which, CHROMIUMS)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_path = Path(folder) / "run.html"
        trace.save_html(page_path)
        flags = ["--no-sandbox", "--disable-gpu", "--enable-precise-memory-info"]
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        page = browser.new_page(viewport={"width": 1180, "height": 1000})
        page.goto(page_path.as_uri())
        while page.evaluate(f"{_ROOT}?.minisgl?.timings.firstPaint ?? null") is None:
            page.wait_for_timeout(50)  # the page's policy forbids a condition given as text
        thread = page.context.new_cdp_session(page)
        thread.send("Performance.enable", {"timeDomain": "threadTicks"})
        first: float = page.evaluate(f"{_ROOT}.minisgl.timings.firstPaint")
        anywhere, computed = list[float](), list[float]()
        for _ in range(moves):
            before = _computed(thread)
            anywhere.append(page.evaluate(_MOVED, random.randint(0, last)))
            computed.append(_computed(thread) - before)
        start = random.randint(0, max(0, last - moves))
        onward: list[float] = [page.evaluate(_MOVED, start + k) for k in range(moves)]
        heap: int = page.evaluate("performance.memory.usedJSHeapSize")
        size = page_path.stat().st_size
        browser.close()
    moved = median(anywhere), max(anywhere), median(computed), max(computed)
    return Seen(what, first, *moved, median(onward), heap, size)


def _computed(thread: CDPSession) -> float:
    """Milliseconds of processor time that a page's own thread has taken so far."""
    metrics = {
        each["name"]: each["value"] for each in thread.send("Performance.getMetrics")["metrics"]
    }
    return 1e3 * float(metrics["TaskDuration"])


def _engine(**sizes: Any) -> Any:
    return load("tiny", runner="hash", overlap=False, threads=1, history=None, **sizes)


def _ids(random: Random, length: int) -> list[int]:
    return [random.randrange(300, 1270) for _ in range(length)]


def _long(steps: int) -> Trace:
    random, sampling = Random(1), SamplingParams(max_tokens=50, ignore_eos=True)
    system, engine = _ids(random, 64), _engine(num_pages=4000, max_running=8)
    while len(engine.trace) < steps:
        while len(engine.queue) < 4:
            engine.add(system + _ids(random, random.randrange(20, 200)), sampling)
        engine.step()
    return trace_of(engine)


def _wide(steps: int) -> Trace:
    random, sampling = Random(2), SamplingParams(max_tokens=steps, ignore_eos=True)
    engine = _engine(num_pages=20_000, max_running=256, max_step_tokens=4096)
    for _ in range(300):
        engine.add(_ids(random, random.randrange(8, 40)), sampling)
    engine.run(max_steps=steps)
    return trace_of(engine)


def _tree(nodes: int) -> Trace:
    """Prompts that branch everywhere: each adds about one node of five pages."""
    random, engine = Random(3), _engine(num_pages=5 * nodes, page_size=1, max_running=64)
    known: list[list[int]] = [_ids(random, 5)]
    for _ in range(nodes):
        stem = random.choice(known)
        prompt = stem[: random.randrange(0, len(stem))] + _ids(random, 4)
        if len(prompt) < 40:
            known.append(prompt)
        engine.add(prompt, SamplingParams(max_tokens=1, ignore_eos=True))
    engine.run()
    return trace_of(engine)


def trace_of(engine: Any) -> Trace:
    """The run so far, of an engine that is closed then."""
    trace: Trace = engine.trace
    engine.close()
    return trace
