"""Messages arrive as they were sent, in order; what is none of them is dropped and told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisgl.core import SamplingParams
from minisgl.message.records import (
    Ask,
    Cancel,
    Chat,
    Hello,
    Ids,
    Over,
    Piece,
    Stop,
    Text,
    ToApi,
    ToEngine,
    Token,
    ToTokenizer,
)
from minisgl.message.wire import Inbox, Outbox


@pytest.fixture
def inbox(tmp_path: Path) -> Any:
    with Inbox[Any](tmp_path / "tokenizer", ToTokenizer) as made:
        yield made


@pytest.fixture
def outbox(tmp_path: Path) -> Any:
    with Outbox[Any](tmp_path / "tokenizer") as made:
        yield made


def test_messages_arrive_in_the_order_in_which_they_were_sent(inbox: Any, outbox: Any) -> None:
    sampling = SamplingParams(stop=["a", "b"], logit_bias={3: 0.5}, seed=-(2**63), logprobs=2)
    sent = [Ask((i,), Text(f"prompt {i}"), sampling) for i in range(50)]
    sent += [Ask((90, 91), Chat(({"role": "user", "content": [1, None, "é"]},)), sampling, True)]
    outbox.send(*sent[:3])
    outbox.send()
    for message in sent[3:]:
        outbox.send(message)
    outbox.send(Hello(), Cancel(4), Stop())
    got: list[Any] = []
    while len(got) < len(sent) + 3:
        got += inbox.receive(5)
    assert got == [*sent, Hello(), Cancel(4), Stop()]
    assert isinstance(got[0].sampling, SamplingParams) and got[0].sampling.biases == ((3, 0.5),)
    assert inbox.receive(0) == []


def test_what_cannot_be_read_is_dropped_with_a_warning(
    inbox: Any, outbox: Any, caplog: pytest.LogCaptureFixture
) -> None:
    encode = msgspec.msgpack.encode
    wrong: list[list[bytes]] = [
        [b"noise"],
        [encode([Cancel(1)]), encode([Cancel(2)])],  # two frames
        [encode([Token(1, 2)])],  # belongs to another link
        [encode([["Cancel", "1"]])],
        [encode([["Ask", [1], ["Text", "x"], {"temperature": -1}, False, False]])],
        [encode([["Ask", [1], ["Text", "x"], {}, False, False, "one more"]])],
    ]
    with caplog.at_level(logging.WARNING, "minisgl"):
        for frames in wrong:
            outbox.socket.send_multipart(frames)
        outbox.send(Cancel(7))
        got: list[Any] = []
        while not got:
            got += inbox.receive(5)
    assert got == [Cancel(7)]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 6 and all(line.startswith("tokenizer: a message that") for line in told)
    assert any("temperature must be from 0 to 100" in line for line in told)


def many_of(kinds: Any) -> Any:
    return list[kinds]


@given(st.binary(max_size=60))
def test_any_bytes_are_messages_or_dropped(noise: bytes) -> None:
    for kinds in (ToTokenizer, ToEngine, ToApi):
        inbox: Any = Inbox.__new__(Inbox)
        inbox.name, inbox._decoder = "x", msgspec.msgpack.Decoder(many_of(kinds))
        assert isinstance(inbox.read([noise]), list)


def test_nothing_waits_for_a_reader_that_is_not_there(outbox: Any) -> None:
    for i in range(20_000):
        outbox.send(Cancel(i))


def test_messages_never_change(inbox: Any) -> None:
    piece: Any = Piece(1, "text", 2, (), Over(1, "stop", False, None, 0, None))
    with pytest.raises(AttributeError):
        piece.text = "other"
    encoded = msgspec.msgpack.encode(piece)
    assert msgspec.msgpack.decode(encoded, type=Piece) == piece
    assert isinstance(msgspec.msgpack.decode(encoded)[0], str), "it says its kind"
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Ids((1, 2))), type=Ids).ids == (1, 2)
