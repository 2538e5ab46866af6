"""The matrix of ratios shows what the ablations found, cell by cell."""

from __future__ import annotations

import warnings
from math import log
from typing import Any

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from minisgl.bench.ablate import ablate
from minisgl.bench.ablation import Ablation
from minisgl.bench.effects import Effect, Interval
from minisgl.bench.matrix import Matrix, colour, matrix
from minisgl.bench.workload import Workload
from minisgl.config import EngineConfig
from minisgl.inspector.figures.picture import Picture

matplotlib.use("agg")

METRICS = ("computed", "reused", "peak_pages")
TOGGLES: dict[str, list[Any]] = {"prefix_cache": ["naive"], "page_size": [4], "overlap": [False]}


@pytest.fixture(scope="module")
def studies() -> dict[str, Ablation]:
    base = EngineConfig(runner="hash", num_pages=200)
    works = {
        "few-shot": Workload.synthetic("few_shot", 6, shot_len=20, output_len=(2, 5)),
        "a_tree": Workload.synthetic("tree", 6, output_len=(2, 5)),
    }
    return {
        name: ablate(work, base=base, toggles=TOGGLES, repeats=1, progress=False, metrics=METRICS)
        for name, work in works.items()
    }


def drawn(picture: Picture) -> dict[tuple[int, int], tuple[str, list[str]]]:
    """Of each cell, by row and column: its colour, and the texts that stand in it."""
    (ax,) = picture.axes
    found: dict[tuple[int, int], tuple[str, list[str]]] = {}
    for box in ax.patches:
        if isinstance(box, Rectangle) and str(box.get_gid()).startswith("cell"):
            (x, y), fill = box.get_xy(), to_hex(box.get_facecolor())
            inside = [t for t in ax.texts if _is_in(t.get_position(), x, y)]
            found[int(y), int(x)] = fill, [t.get_text() for t in inside]
    return found


def _is_in(place: tuple[float, float], x: float, y: float) -> bool:
    return x < place[0] < x + 1 and y < place[1] < y + 1


def test_each_cell_shows_its_effect(studies: dict[str, Ablation]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = matrix(studies)
        picture.draw_without_rendering()
    cells, shape = drawn(picture), Matrix(studies)
    assert shape.arms == ["prefix_cache=naive", "page_size=4", "overlap=False"]
    columns = [(metric, name) for metric in METRICS for name in studies]
    assert len(cells) == 3 * len(columns)
    effects = {
        (found.arm, found.metric, name): found
        for name, study in studies.items()
        for found in study.effects
    }
    assert len(effects) == 3 * 2 * 3 - 2  # pages of different sizes are not compared
    for (r, c), (fill, words) in cells.items():
        found = effects.get((shape.arms[r], *columns[c]))
        if found is None:
            assert (fill, words) == ("#ffffff", ["–"])
            continue
        assert fill == colour(found) and words[1] == found.verdict
        if found.verdict == "equal":
            assert words[0] == "="
        else:
            shown, ratio = float(words[0].removeprefix("× ")), found.value / found.base
            assert shown == pytest.approx(ratio, abs=0.005)
    assert ["× 0", "worse"] in [words for _, words in cells.values()], "nothing is reused"


def test_the_words_beside_the_picture_tell_every_cell(studies: dict[str, Ablation]) -> None:
    words = matrix(studies, "reused").alt.splitlines()
    every = [found for study in studies.values() for found in study.effects]
    some = [found.verdict for found in every if found.metric == "reused"]
    assert words[0].startswith("6 comparisons with the base: ")
    for verdict in set(some):
        assert f"{some.count(verdict)} {verdict}" in words[0]
    assert len(words) == 1 + 6
    reused = next(e for e in studies["a_tree"].effects if e.metric == "reused")
    assert f"prefix_cache=naive, reused, a_tree: 0, base {reused.base:.0f}, worse" in words


def test_one_study_needs_no_name_over_its_columns(studies: dict[str, Ablation]) -> None:
    one = {"the only one": studies["a_tree"]}
    ax: Axes = matrix(one, "computed").axes[0]
    texts = [text.get_text() for text in ax.texts]
    assert "computed" in texts and "less is better" in texts and "the only one" not in texts


def test_there_must_be_something_to_draw(studies: dict[str, Ablation]) -> None:
    with pytest.raises(ValueError, match="no effect of ttft to draw"):
        matrix(studies, "ttft")
    with pytest.raises(ValueError, match="no effect of any metric to draw"):
        matrix({})


def found(value: float, base: float, verdict: Any) -> Effect:
    ratio = value / base if value and base else None
    interval = Interval(ratio, ratio, ratio) if ratio else None
    return Effect("arm", "steps", base, value, interval, verdict, True)


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_the_further_from_one_the_deeper_the_colour(a: float, b: float) -> None:
    def blue(ratio: float) -> int:
        """How much of red a blue lacks: its depth."""
        return 255 - int(colour(found(ratio, 1.0, "better"))[1:3], 16)

    near, far = sorted((a, b), key=lambda ratio: abs(log(ratio)))
    assert 20 < blue(near) <= blue(far) <= blue(1e-9)
    assert abs(blue(a) - blue(1 / a)) <= 1, "but for rounding"


def test_only_what_differs_has_a_colour() -> None:
    for verdict in ("equal", "unclear", "too few runs"):
        assert colour(found(1.5, 1.0, verdict)) == "#ffffff"
    none = colour(found(0.0, 5.0, "worse"))
    assert none == colour(found(1e-9, 1.0, "worse")) != colour(found(0.5, 1.0, "worse"))
