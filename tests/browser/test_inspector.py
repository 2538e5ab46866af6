"""The inspector in a real JupyterLab: what one clicks happens to the engine in the kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from PIL import Image

from minisgl.display import STATES
from tests.browser.pages import Notebook
from tests.notebook_hygiene import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Locator

Opened = Callable[..., Notebook]
CELLS = [
    """\
import minisgl
from minisgl import SamplingParams
from minisgl.demo import chats
engine = minisgl.load("tiny", num_pages=120, max_step_tokens=256, max_running=6)
requests = [engine.add(chat, SamplingParams(max_tokens=20)) for chat in chats()]
records = engine.run(max_steps=8)
""",
    "view = minisgl.inspect(engine)\nview",
]


class Seen:
    """The inspector on a page, and the one in the kernel."""

    def __init__(self, book: Notebook, where: Locator, name: str = "view") -> None:
        self.book, self.name = book, name
        self.root = where.get_by_role("region", name="minisgl inspector")
        self.root.wait_for()
        self.root.evaluate("root => root.minisgl.ready.then(() => null)")

    def drawn(self) -> dict[str, Any]:
        """What stands on the page."""
        found: dict[str, Any] = self.root.evaluate("root => root.minisgl.drawn()")
        return found

    def press(self, name: str) -> None:
        """Click a button by the beginning of its name."""
        self.root.locator(f'button[aria-label^="{name}"], button:text-is("{name}")').first.click()

    def is_at(self, cursor: int) -> None:
        """Wait until kernel and page have the cursor at a step, and agree on what it shows."""
        assert self.book.wait_for(f"{self.name}.cursor == {cursor}")
        shown = "([root, k]) => root.minisgl.drawn().cursor === k"
        for _ in range(100):
            if self.root.evaluate("(root, k) => root.minisgl.drawn().cursor === k", cursor):
                break
            self.book.page.wait_for_timeout(50)
        drawn = self.drawn()
        assert drawn["cursor"] == cursor, shown
        counts = self.book.value(f"list({self.name}.trace.scheduler({cursor}).pool.counts)")
        assert drawn["pages"]["holders"] == counts
        said = f"__import__('minisgl.trace.sentence').trace.sentence.sentence({self.name}.record)"
        assert drawn["sentence"] == self.book.value(said)


def test_a_session_of_work(open_notebook: Opened, tmp_path: Path) -> None:
    """One notebook for all of it: to open one takes longer than all that is done with it."""
    book = open_notebook(CELLS, 1400, 1500)
    book.run_all()
    seen = Seen(book, book.output(1))
    seen.is_at(7)
    looks(seen, tmp_path)
    tells_what_is_under_the_pointer(seen)
    steps_looks_back_and_scrubs(seen, 7)
    book.add("records = engine.run(max_steps=2)")  # stepped elsewhere, shown here
    seen.is_at(10)
    stops_at_breakpoints(seen)
    forks_and_goes_back(seen)
    launches_an_edited_plan(seen)
    leaves_an_arrival_out(seen)
    book.run("engine.close()\nview.refresh()")
    seen.root.get_by_text("closed").first.wait_for()
    assert not seen.root.locator('button[aria-label^="step ("]').is_enabled()
    cursor = seen.drawn()["cursor"]
    book.restart()
    seen.root.get_by_text("kernel gone").first.wait_for()
    seen.press("step back")
    book.page.wait_for_timeout(200)
    assert seen.drawn()["cursor"] == cursor - 1


def looks(seen: Seen, folder: Path) -> None:
    """Every theme shows the states in their colours."""
    for path in seen.book.pictures(seen.root, folder, "inspector"):
        vivid = [c for c, n in colours(path).items() if n > 400 and max(c) - min(c) > 90]
        assert len(vivid) >= 2, f"{path.name}: no state has a colour"
    decode = tuple(bytes.fromhex(STATES["decode"][1:]))
    assert decode in colours(folder / "inspector-light.png")


def colours(path: Path) -> dict[tuple[int, ...], int]:
    """How many pixels of a picture have each colour."""
    found = Image.open(path).convert("RGB").getcolors(1 << 24) or []
    return {cast(tuple[int, ...], colour): n for n, colour in found}


def tells_what_is_under_the_pointer(seen: Seen) -> None:
    node = max(seen.drawn()["tree"], key=lambda node: float(node["w"]))
    canvas = seen.root.locator("section.msgl-tree canvas").first
    canvas.hover(position={"x": node["x"] + node["w"] / 2, "y": node["y"] + 8})
    told = seen.root.get_by_role("tooltip")
    told.wait_for()
    words = told.inner_text()
    assert f"{node['size'] * 16} tokens" in words and "Here are some stories." in words
    assert "held by r8" in words and "computed by r8" in words


def steps_looks_back_and_scrubs(seen: Seen, at: int) -> None:
    """From the head, step ``at``, to the next one."""
    book = seen.book
    seen.press("step (")
    seen.is_at(at + 1)
    assert book.value("len(view.trace)") == at + 2
    seen.press("step back")
    seen.is_at(at)
    assert book.value("len(view.trace)") == at + 2
    seen.root.get_by_label("step", exact=True).fill("3")
    seen.is_at(3)
    seen.root.focus()
    book.page.keyboard.press("ArrowRight")
    seen.is_at(4)
    book.page.keyboard.press("End")
    seen.is_at(at + 1)


def stops_at_breakpoints(seen: Seen) -> None:
    book = seen.book
    known = book.value("len(view.engine.breakpoints)")
    seen.press("Breakpoints")
    seen.root.get_by_label("condition").select_option("finish")
    seen.press("Add")
    assert book.wait_for(f"len(view.engine.breakpoints) == {known + 1}")
    seen.root.focus()
    hits = []
    for _ in range(2):
        before = book.value("len(view.trace)")
        seen.press("run to the next breakpoint")
        assert book.wait_for(f"len(view.trace) > {before} and 'ends' in repr(view.trace[-1])")
        hits.append(book.value("len(view.trace) - 1"))
        seen.is_at(hits[-1])
    seen.press("back to the previous breakpoint")
    seen.is_at(hits[0])
    seen.press("Breakpoints")
    listed = seen.root.locator(".msgl-point", has_text="finish")
    listed.get_by_role("checkbox").uncheck()
    assert book.wait_for("[b.enabled for b in view.engine.breakpoints][-1] is False")
    book.run("mine = engine.break_when(lambda record: record.batch.step == 1)")
    book.run("view.refresh()")
    mine = seen.root.locator(".msgl-point", has_text="lambda record: record.batch.step == 1")
    mine.wait_for()  # the open list tells of it
    book.run("mine.remove(); view.refresh()")
    listed.get_by_role("button").click()
    assert book.wait_for(f"len(view.engine.breakpoints) == {known}")
    book.page.keyboard.press("Escape")


def forks_and_goes_back(seen: Seen) -> None:
    book = seen.book
    runs = book.value("len(view.runs)")
    seen.root.get_by_label("step", exact=True).fill("4")
    seen.is_at(4)
    seen.press("Fork here")
    seen.root.get_by_label("policy").select_option(label="decode first")
    seen.root.locator("button:text-is('Fork')").click()
    assert book.wait_for(f"len(view.runs) == {runs + 1} and view.run == {runs}")
    forked = book.value("(view.engine.config.policy, len(view.engine.trace))")
    assert forked == ["decode_first", 5]
    assert seen.root.get_by_role("tab").count() == runs + 1
    seen.press("step (")
    assert book.wait_for("len(view.engine.trace) == 6")
    seen.root.get_by_role("tab").first.click()
    assert book.wait_for("view.run == 0")
    seen.root.get_by_label("step", exact=True).fill("6")
    seen.is_at(6)
    seen.press("Rewind here")
    assert book.wait_for("len(view.trace) == 7")
    seen.is_at(6)


def launches_an_edited_plan(seen: Seen) -> None:
    book = seen.book
    rows = book.value("[row[0] for row in engine.plan().rows]")
    assert len(rows) > 1
    seen.root.locator("label.msgl-chip", has_text=f"r{rows[0]} ").first.click()
    before = book.value("engine.next_step")
    seen.press("Launch")
    assert book.wait_for(f"len(engine.trace) == {before} + 1")
    ran = book.value("[row.rid for row in engine.trace[-1].batch.rows]")
    assert ran == rows[1:]
    # whom the policy left out can be added: here r0, which decodes only when no prompt is left
    book.run("engine.rewind(to=2); view.refresh()")
    seen.is_at(1)
    planned = book.value("[row[0] for row in engine.plan().rows]")
    assert 0 not in planned
    for rid in (*planned, 0):
        seen.root.locator("label.msgl-chip", has_text=f"r{rid} ").first.click()
    before = book.value("engine.next_step")
    seen.press("Launch")
    assert book.wait_for(f"len(engine.trace) == {before} + 1")
    assert book.value("[row.rid for row in engine.trace[-1].batch.rows]") == [0]


def leaves_an_arrival_out(seen: Seen) -> None:
    seen.root.get_by_text("r8", exact=True).first.click()
    assert seen.book.wait_for("view.selected == 8")
    seen.root.get_by_role("button", name="Skip its arrival").first.click()
    assert seen.book.wait_for("len(view.runs) == 3 and view.run == 2")
    ran = "[row.rid for record in view.trace for row in record.batch.rows]"
    assert seen.book.value(f"8 in {ran}") is False
    seen.root.get_by_role("tab").first.click()
    assert seen.book.wait_for("view.run == 0")


def test_the_view_of_the_seventh_tutorial_does_what_is_clicked(open_notebook: Opened) -> None:
    book = open_notebook(ROOT / "tutorials" / "7 Time travel, forks and what-if.ipynb", 1400, 1500)
    cells = book.run_all()
    (shown,) = [i for i, cell in enumerate(cells) if cell.source.rstrip().endswith("\nview")]
    seen = Seen(book, book.output(shown))
    at = book.value("view.cursor")
    node = max(seen.drawn()["tree"], key=lambda node: float(node["w"]))
    canvas = seen.root.locator("section.msgl-tree canvas").first
    canvas.hover(position={"x": node["x"] + node["w"] / 2, "y": node["y"] + 8})
    assert "used last in step" in seen.root.get_by_role("tooltip").inner_text()
    steps_looks_back_and_scrubs(seen, at)
    stops_at_breakpoints(seen)
    forks_and_goes_back(seen)
