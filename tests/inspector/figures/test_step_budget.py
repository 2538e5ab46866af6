"""The stacks are the columns of the frame."""

from __future__ import annotations

import numpy as np

from minisgl.core import (
    SamplingParams,
)
from minisgl.inspector.figures.picture import Picture
from minisgl.trace import Trace
from tests.hash_engine import hash_engine
from tests.inspector.drawn import axes_of, heights, of


def test_the_stacks_are_the_columns_of_the_frame(trace: Trace) -> None:
    picture, frame = of(trace.plot.budget()), trace.to_frame("steps")
    decode = np.array(heights(picture, "decode"))
    assert list(decode) == list(frame.decode_rows)
    assert list(heights(picture, "prefill") + decode) == list(frame.computed)
    assert heights(picture, "free") == list(frame.free_pages)
    assert heights(picture, "evictable") == list(frame.evictable_pages)
    held = trace.config.limits.num_pages - frame.free_pages - frame.evictable_pages
    assert heights(picture, "held") == list(held)
    assert heights(picture, "promised") == list(held + frame.promised_pages)
    assert f"{frame.computed.sum():,} tokens in {len(frame):,} steps" in picture.alt
    assert f"Pages held, of 17: {held.min()} to {held.max()}" in picture.alt


def test_a_window_shows_its_steps_alone(trace: Trace) -> None:
    picture, frame = of(trace.plot.budget(5, 9)), trace.to_frame("steps")[5:10]
    assert heights(picture, "free") == list(frame.free_pages)
    assert "steps 5 to 9" in picture.alt and "5 to 9" in of(trace.plot.lanes(5, 9)).alt


def test_a_fork_has_its_own_limit_from_where_it_began() -> None:
    engine = hash_engine(max_step_tokens=5)
    engine.add([1, 2, 3, 4, 5, 6, 7], SamplingParams(max_tokens=3, ignore_eos=True))
    engine.run(max_steps=2)
    twin = engine.fork(max_step_tokens=9)
    begun = len(twin.trace)
    twin.add([2] * 9, SamplingParams(max_tokens=2, ignore_eos=True))
    twin.run()
    limits = heights(of(twin.trace.plot.budget()), "limit of tokens")
    assert limits == [5.0] * begun + [9.0] * (len(twin.trace) - begun)


def test_many_steps_are_averaged_and_nothing_is_lost() -> None:
    engine = hash_engine(num_pages=60, max_running=2, check=False)
    for i in range(30):
        engine.add([1 + i % 9, 2, 3], SamplingParams(max_tokens=30, ignore_eos=True))
    engine.run()
    frame, picture = engine.trace.to_frame("steps"), of(engine.trace.plot.budget())
    drawn, n = heights(picture, "prefill"), len(frame)
    assert len(drawn) < n / 1.9 and "each place is the mean of 2 steps" in _said(picture)
    whole = sum(drawn[:-1]) * 2 + drawn[-1] * (n - 2 * (len(drawn) - 1))
    assert round(whole) == frame.computed.sum() - frame.decode_rows.sum()


def _said(picture: Picture) -> str:
    return " ".join(t.get_text() for ax in axes_of(picture) for t in ax.texts)
