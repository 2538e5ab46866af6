"""Two runs' lanes in one picture, read back from what is drawn."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="figures need matplotlib")

import minisgl
from minisgl.core import SamplingParams
from minisgl.engine.engine import Engine
from tests.hash_engine import hash_engine


def crowd(requests: int = 3, **options: Any) -> Engine:
    fixed: dict[str, Any] = {"depth": 1, "num_pages": 12, "max_seq_len": 12, "expected_output": 1}
    engine = hash_engine(**fixed | options)
    for i in range(requests):
        engine.add([1 + i % 5] * 4, SamplingParams(max_tokens=6, ignore_eos=True))
    return engine


def finished(engine: Engine) -> Engine:
    engine.run()
    return engine


def test_both_runs_are_drawn_on_one_axis_with_the_step_at_which_they_part() -> None:
    a, b = finished(crowd()), finished(crowd(admission="optimistic"))
    told = minisgl.compare(a, b)
    picture, step = told.plot(), told.step
    assert step == 0
    above, below = picture.axes
    assert above.get_xlim() == below.get_xlim() == (-0.8, len(a.trace) - 1 + 1.3)
    for ax, name in ((above, "a"), (below, "b")):
        assert ax.get_ylabel() == name
        assert [text.get_text() for text in ax.get_yticklabels()] == ["r0", "r1", "r2"]
        (mark,) = [line for line in ax.lines if line.get_gid() == "parting"]
        assert list(mark.get_xdata()) == [step - 0.5] * 2
    assert picture.alt.startswith(repr(told)) and "\n\na:\n\n3 requests" in picture.alt
    assert " ".join(picture.get_suptitle().split()) == f"a and b part in {told.divergence}"


def test_without_a_difference_nothing_is_marked() -> None:
    picture = minisgl.compare(finished(crowd()), finished(crowd())).plot()
    assert not [x for ax in picture.axes for x in ax.lines if x.get_gid() == "parting"]
    assert picture.get_suptitle() == "a and b are the same"


def test_of_a_run_that_stands_still_only_what_both_have_is_drawn() -> None:
    begun = crowd(admission="optimistic")
    begun.run(max_steps=4)
    picture = minisgl.compare(finished(crowd()), begun).plot()
    assert picture.axes[0].get_xlim() == (-0.8, 3 + 1.3)


def test_long_runs_are_drawn_around_the_step_in_which_they_part() -> None:
    a = finished(crowd(30))
    b = crowd(30)
    b.run(max_steps=100)
    b = b.fork(max_step_tokens=2)
    b.run()
    told = minisgl.compare(a, b)
    assert told.step is not None and told.step >= 100
    left, right = told.plot().axes[0].get_xlim()
    assert (left, right) == (told.step - 15 - 0.8, told.step + 45 + 1.3)
