"""What crosses between engine and workers arrives as it was sent, or is refused."""

from __future__ import annotations

import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisgl.core import Batch, Draw, Logprob, Outcome, Row, SamplingParams, Span
from minisgl.executor import wire

IDS = st.integers(0, 2**31)
SOME_IDS = st.lists(IDS, max_size=5).map(tuple)
SEEDS = st.integers(-(2**63), 2**63 - 1)
SAMPLING = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2),
    top_p=st.floats(0.01, 1),
    top_k=st.sampled_from([-1, 1, 50]),
    seed=st.none() | SEEDS,
    stop=st.lists(st.text(min_size=1, max_size=5), max_size=2),
    logprobs=st.none() | st.integers(0, 20),
    logit_bias=st.dictionaries(IDS, st.floats(-100, 100), max_size=2),
)
DRAWS = st.builds(Draw, SEEDS, IDS, st.none() | st.tuples(SOME_IDS, SOME_IDS), SOME_IDS)
ROWS = st.builds(
    Row,
    IDS,
    IDS,
    IDS,
    IDS,
    st.none() | SOME_IDS,
    IDS,
    SOME_IDS,
    st.booleans(),
    SAMPLING,
    st.none() | DRAWS,
)
FLOATS = st.floats(allow_nan=False)
LOGPROBS = st.builds(Logprob, FLOATS, IDS, st.lists(st.tuples(IDS, FLOATS), max_size=3).map(tuple))
OUTCOMES = st.builds(
    Outcome,
    IDS,
    st.lists(st.none() | IDS, max_size=4).map(tuple),
    st.lists(st.builds(Span, st.text(max_size=9), st.text(max_size=9), FLOATS, FLOATS)).map(tuple),
    st.none(),
    st.lists(st.none() | LOGPROBS, max_size=3).map(tuple),
    st.lists(st.lists(LOGPROBS, max_size=2).map(tuple), max_size=3).map(tuple),
    stops=st.just(()),  # the engine finds those
)


@given(st.builds(Batch, IDS, st.lists(ROWS, max_size=4).map(tuple)))
def test_a_batch_arrives_as_it_was_sent(batch: Batch) -> None:
    sent = wire.command(wire.pack(wire.Launch(3, wire.pack_batch(batch))))
    assert isinstance(sent, wire.Launch) and sent.runner == 3
    arrived = wire.unpack_batch(sent.batch)
    assert arrived == batch
    assert all(type(row) is Row and type(row.sampling) is SamplingParams for row in arrived.rows)


@given(OUTCOMES)
def test_an_outcome_arrives_to_the_last_bit(outcome: Outcome) -> None:
    answer = wire.answer(wire.pack(wire.Done(7, outcome)))
    assert answer == wire.Done(7, outcome)
    assert isinstance(answer, wire.Done) and repr(answer.outcome) == repr(outcome)


@pytest.mark.parametrize(
    "message",
    [
        wire.Start(1, 2, "folder", {"tp": 2, "attention": "auto", "check": False}, 2, "x", 3.5),
        wire.Save(0, 4, (1, 2), 5),
        wire.Restore(0, (wire.Part(4, (1, 2), (0, 1)),), 5),
        wire.Fork(0, 6),
        wire.Forget((4, 5)),
        wire.Close(),
    ],
)
def test_a_command_arrives_as_it_was_sent(message: Any) -> None:
    assert wire.command(wire.pack(message)) == message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        pickle.dumps(wire.Close),
        wire.pack(wire.Done()),  # an answer is no command
        msgspec.msgpack.encode({"type": "Fork", "runner": "0", "twin": 1}),
        msgspec.msgpack.encode({"type": "Fork", "runner": 0}),
        msgspec.msgpack.encode({"type": "Shell", "line": "rm"}),
    ],
)
def test_what_is_no_command_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        wire.command(data)


def test_sampling_out_of_range_is_refused() -> None:
    plain = msgspec.msgpack.encode(SamplingParams())
    wrong = plain.replace(b"top_k\xff", b"top_k\x00")
    assert wrong != plain
    row = (0, 0, 0, 1, None, 0, (), True, msgspec.Raw(wrong), None)
    with pytest.raises(msgspec.ValidationError, match="top_k must be -1"):
        wire.unpack_batch(msgspec.Raw(msgspec.msgpack.encode((0, (row,)))))
