"""``trace.plot``: which steps, which errors, the words that go with every picture, and its size."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from minisgl.core import SamplingParams
from minisgl.inspector.figures.lettering import SMALL
from minisgl.inspector.figures.picture import Picture
from minisgl.inspector.plot import Plot
from minisgl.registry import find, names
from minisgl.trace import Trace
from tests.hash_engine import hash_engine
from tests.inspector.drawn import axes_of, boxes, every_figure, of, stressed, words

GREEDY = SamplingParams(max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def trace() -> Trace:
    return stressed().trace


# ---- which steps ---------------------------------------------------------------------------------


def test_every_view_of_a_trace_can_be_found() -> None:
    assert find("view", "plot") is Plot
    assert all(callable(find("view", name)) for name in names("view"))


def test_what_can_be_drawn_is_said(trace: Trace) -> None:
    named = repr(trace.plot).rpartition(": ")[2].split(", ")
    assert named == [name for name in vars(Plot) if not name.startswith("_")]


def test_a_step_may_be_counted_from_the_end(trace: Trace) -> None:
    last = len(trace) - 1
    for name in ("tree", "pages", "batch"):
        draw = getattr(trace.plot, name)
        assert draw().alt == draw(-1).alt == draw(last).alt != draw(last // 2).alt
    assert trace.plot.lanes(-3).alt == trace.plot.lanes(last - 2, last).alt


def test_a_step_that_is_not_kept_is_refused(trace: Trace) -> None:
    n = len(trace)
    for draw in (trace.plot.tree, trace.plot.pages, trace.plot.batch, trace.plot.lanes):
        for step in (n, -n - 1):
            with pytest.raises(ValueError, match=f"step {step} was asked, 0 to {n - 1} are kept"):
                draw(step)
    with pytest.raises(ValueError, match="steps 5 to 3 are none; first must not exceed last"):
        trace.plot.budget(5, 3)


def test_a_trace_without_steps_is_refused() -> None:
    empty = hash_engine().trace
    for name in ("lanes", "tree", "pages", "batch", "timeline", "budget"):
        with pytest.raises(ValueError, match="this trace has no steps; run the engine first"):
            getattr(empty.plot, name)()


def test_a_trace_whose_beginning_was_forgotten_can_be_drawn() -> None:
    engine = hash_engine(history=20, num_pages=12, max_seq_len=12, check=False)
    for i in range(20):
        engine.add([1, 2, 1 + i % 9], GREEDY)
        engine.run(max_steps=2)
    trace = engine.trace
    first = trace.history.first
    assert first > 0
    figures = every_figure(trace)
    assert f"{first} to {len(trace) - 1}" in figures["lanes"].alt
    for record in list(trace)[::7]:
        k = record.batch.step
        batch = of(trace.plot.batch(k))
        rows = boxes(batch, "budget prefill") + boxes(batch, "budget decode")
        assert len(rows) == len(record.batch.rows)
        free = f"{record.gauges.free_pages} of 12 pages free"
        assert free in of(trace.plot.pages(k)).alt
    drawn = [len(boxes(figures["lanes"], name)) for name in ("prefill", "decode")]
    dropped = [len(boxes(figures["lanes"], f"dropped {name}")) for name in ("prefill", "decode")]
    assert sum(drawn + dropped) == sum(len(record.batch.rows) for record in trace)
    with pytest.raises(ValueError, match=f"step 0 was asked, {first} to {len(trace) - 1} are kept"):
        trace.plot.tree(0)


def test_a_request_that_ended_before_the_first_kept_step_waits_for_nothing() -> None:
    engine = hash_engine(history=4, check=False)
    for i in range(40):
        engine.add([1 + i % 9, 2], SamplingParams(max_tokens=3, ignore_eos=True))
        engine.run(max_steps=3)
        left = [r.rid for r in engine.trace.start().running.values() if r.finish is not None]
        for line in of(engine.trace.plot.lanes()).alt.splitlines():
            if line.startswith(tuple(f"r{rid}:" for rid in left)) and left:
                assert "waits" not in line


# ---- what comes back -----------------------------------------------------------------------------


def test_a_figure_is_a_picture_unless_axes_are_given(trace: Trace) -> None:
    ours = Picture(figsize=(7, 12), layout="constrained")
    theirs = Figure(figsize=(7, 12), layout="constrained")
    for figure in (ours, theirs):
        top, below = figure.subplots(2)
        assert trace.plot.lanes(ax=top) is top
        assert trace.plot.batch(3, ax=below) is below
        assert isinstance(top, Axes)
    assert ours.alt == f"{trace.plot.lanes().alt}\n\n{trace.plot.batch(3).alt}"
    assert set(boxes(of(trace.plot.lanes()), "prefill")) <= set(boxes(ours, "prefill"))


def test_words_are_the_same_every_time() -> None:
    one, other = every_figure(stressed().trace), every_figure(stressed().trace)
    for name in one:
        assert one[name].alt == other[name].alt, name
        assert not re.search(r"0x[0-9a-f]{6}|<[A-Za-z.]+ ", one[name].alt), name


def test_a_notebook_gets_the_picture_with_its_words_and_nothing_else(trace: Trace) -> None:
    picture = of(trace.plot.lanes())
    data, about = picture._repr_mimebundle_()
    assert data.keys() == {"image/png", "text/plain"}
    assert data["text/plain"] == about["image/png"]["alt"] == picture.alt
    assert about["image/png"]["width"] == 700


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_file_carries_the_words_too(trace: Trace, tmp_path: Path, ending: str) -> None:
    picture = of(trace.plot.tree(9))
    picture.savefig(tmp_path / f"tree.{ending}")
    if ending == "png":
        with Image.open(tmp_path / "tree.png") as image:
            assert image.info["Description"] == picture.alt
    else:
        whole = (tmp_path / f"tree.{ending}").read_bytes()
        assert picture.alt.splitlines()[0].encode("utf-16-be" if b"\xfe\xff" in whole else "utf-8")[
            :20
        ] in whole.replace(b"\\000", b"\0")


# ---- how it looks --------------------------------------------------------------------------------


def test_nothing_is_cut_off_and_nothing_is_too_small(trace: Trace) -> None:
    for name, picture in every_figure(trace).items():
        picture.draw_without_rendering()
        width, height = picture.bbox.width, picture.bbox.height
        for text in words(picture):
            box = text.get_window_extent()
            inside = box.x0 > -2 and box.y0 > -2 and box.x1 < width + 2 and box.y1 < height + 2
            assert inside, (name, text.get_text(), box, width, height)
            assert float(text.get_fontsize()) >= SMALL, (name, text.get_text())


def test_labels_of_one_kind_do_not_overlap(trace: Trace) -> None:
    for name, picture in every_figure(trace).items():
        picture.draw_without_rendering()
        for ax in axes_of(picture):
            labels = [t for t in words(picture) if t in ax.texts]
            labels += [t for t in (*ax.get_xticklabels(), *ax.get_yticklabels()) if t.get_text()]
            shapes = [(t.get_text(), t.get_window_extent().padded(-1)) for t in labels]
            for i, (text, box) in enumerate(shapes):
                for other, its in shapes[i + 1 :]:
                    assert not box.overlaps(its), (name, text, other)


def test_text_of_prompts_is_shown_as_it_is() -> None:
    engine = hash_engine(page_size=4, num_pages=20)
    engine.add([1] * 9, GREEDY)
    engine.run()
    trace = engine.trace
    hostile = "$\\frac{1$ <b>日本</b> \x1b[31m\u202egnp\ud800 {x}\n\t%s"
    trace.decode = lambda ids: hostile
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = of(trace.plot.tree())
        picture._repr_mimebundle_()
    assert "\\x1b" in picture.alt and "\x1b" not in picture.alt and "\u202e" not in picture.alt
    assert any(text.get_text().startswith("$\\frac{1$ <b>") for text in words(picture))


def test_a_large_run_takes_few_artists() -> None:
    engine = hash_engine(num_pages=4000, max_running=8, check=False, max_seq_len=400, page_size=4)
    for i in range(300):
        engine.add([1 + i % 9, 2, 1 + i % 7, 3, 4], SamplingParams(max_tokens=40, ignore_eos=True))
        engine.run(max_steps=5)
    engine.run()
    assert len(engine.trace) > 1400
    for name, picture in every_figure(engine.trace).items():
        parts = len(picture.findobj())
        assert parts < 700, (name, parts)
        assert picture.get_size_inches()[1] <= 11, name
        assert len(picture.alt) < 4000, name
