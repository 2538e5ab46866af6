"""The API's end of the ring: what is open, what has arrived for it, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from minisgl.core import SamplingParams
from minisgl.message.records import (
    Ask,
    Cancel,
    Decode,
    Encode,
    Hello,
    Ids,
    Opened,
    Over,
    Piece,
    Ready,
    Refused,
    Reported,
    Text,
)
from minisgl.server.desk import Desk
from minisgl.server.errors import ApiError

READY = Ready("m", {}, 40, 2, 13)
GREEDY = SamplingParams()
END = Over(0, "stop", True, None, 0, 1.0)


class Ring:
    """A desk and what it has sent."""

    def __init__(self, most_waiting: int = 4, ready: bool = True) -> None:
        self.sent: list[Any] = []
        self.desk = Desk(self.sent.append, most_waiting)
        if ready:
            self.desk.take([READY])

    def end(self, rid: int) -> Piece:
        return Piece(rid, "!", 1, (), Over(rid, "stop", True, None, 0, 1.0))


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def made() -> None:
        asyncio.run(asyncio.wait_for(test(), 20))

    made.__name__ = test.__name__
    return made


@run
async def test_answers_are_numbered_and_delivered_to_their_own() -> None:
    ring = Ring()
    with ring.desk.asking([Text("a"), Ids((1,))], 2, GREEDY, echo=True) as reply:
        assert ring.sent == [
            Ask((0, 1), Text("a"), GREEDY, True, False),
            Ask((2, 3), Ids((1,)), GREEDY, True, False),
        ]
        ring.desk.take([Opened(rid, 5, None) for rid in (0, 1, 2, 3)])
        await reply.begin()
        ring.desk.take([Piece(2, "x", 1), Piece(0, "y", 1), Piece(2, "z", 1)])
        fresh = reply.fresh()
        assert [choice.index for choice in fresh[-2:]] == [2, 3] or len(fresh) == 4
        assert {c.index: c.take()[0] for c in fresh if c.text} == {2: "xz", 0: "y"}
        ring.desk.take([ring.end(rid) for rid in (3, 1, 0, 2)])
        await reply.finish()
        assert [choice.total_tokens for choice in reply.choices.values()] == [2, 1, 3, 1]
        assert [choice.prompt_index for choice in reply.choices.values()] == [0, 0, 1, 1]
    assert ring.desk.num_open == 0 and not any(isinstance(m, Cancel) for m in ring.sent)


@run
async def test_what_is_not_over_at_the_end_is_cancelled_and_what_comes_late_is_nothing() -> None:
    ring = Ring()
    with ring.desk.asking([Text("a")], 3, GREEDY):
        ring.desk.take([ring.end(1)])
    assert ring.sent[1:] == [Cancel(0), Cancel(2)] and ring.desk.num_open == 0
    ring.desk.take([Piece(0, "late", 1), ring.end(2), Opened(0, 1, None), Refused((0,), "late")])
    ring.desk.take([Reported(99, {}, None)])


@run
async def test_one_refused_answer_refuses_the_request_and_cancels_the_others() -> None:
    ring = Ring()
    refused = pytest.raises(ApiError, match="too long")
    with refused as told, ring.desk.asking([Text("a")], 3, GREEDY) as reply:
        ring.desk.take([Opened(0, 1, None), Refused((1,), "too long")])
        await reply.begin()
    assert told.value.status == 400
    assert ring.sent[1:] == [Cancel(0), Cancel(2)]


@run
async def test_beyond_the_bound_requests_are_refused_until_some_have_ended() -> None:
    ring = Ring(most_waiting=3)  # two more may run
    with ring.desk.asking([Text("a")], 3, GREEDY) as first:
        with ring.desk.asking([Text("a")], 2, GREEDY):
            with pytest.raises(ApiError) as over, ring.desk.asking([Text("a")], 1, GREEDY):
                pass
            assert over.value.status == 429 and over.value.headers == {"Retry-After": "1"}
            ring.desk.take([ring.end(0)])
            with ring.desk.asking([Text("a")], 1, GREEDY) as later:
                assert list(later.choices) == [5], "numbers only grow, and are not used twice"
        assert first.is_open
    with pytest.raises(ApiError) as never, ring.desk.asking([Text("a")] * 4, 1, GREEDY):
        pass
    assert never.value.status == 400


@run
async def test_questions_are_answered_by_their_keys_in_any_order() -> None:
    ring = Ring()
    first = asyncio.ensure_future(ring.desk.encode(Text("a")))
    second = asyncio.ensure_future(ring.desk.decode([1]))
    third = asyncio.ensure_future(ring.desk.order("dance"))
    await asyncio.sleep(0)
    assert ring.sent[:2] == [Encode(0, Text("a")), Decode(1, (1,))]
    ring.desk.take([Reported(2, None, "no"), Reported(1, {"text": "b"}), Reported(0, {"ids": [3]})])
    assert await first == [3] and await second == "b"
    with pytest.raises(ApiError, match="no"):
        await third


@run
async def test_nobody_is_asked_before_the_ring_is_closed_or_after_it_broke() -> None:
    ring = Ring(ready=False)
    ring.desk.hello()
    assert ring.sent == [Hello()]
    errors = []
    for _ in range(2):
        with pytest.raises(ApiError, match="being loaded") as early:
            ring.desk.check_up()
        errors.append(early.value)
    assert errors[0] is not errors[1], "an error that is raised for ever keeps all that raised it"
    ring.desk.take([READY])
    assert ring.desk.check_up() == READY
    waiting = asyncio.ensure_future(ring.desk.encode(Text("a")))
    breaks = pytest.raises(ApiError, match="it broke")
    with breaks as broke, ring.desk.asking([Text("a")], 1, GREEDY) as reply:
        await asyncio.sleep(0)
        ring.desk.fail("it broke")
        await reply.finish()
    assert broke.value.status == 503
    with pytest.raises(ApiError, match="it broke"):
        await waiting
    with pytest.raises(ApiError, match="it broke"), ring.desk.asking([Text("a")], 1, GREEDY):
        pass


@run
async def test_a_reader_that_is_reminded_is_told_that_nothing_came() -> None:
    ring = Ring()
    with ring.desk.asking([Text("a")], 1, GREEDY) as reply:
        reply.remind()
        assert await reply.wait() is False
        ring.desk.take([Piece(0, "x", 1)])
        reply.remind()
        assert await reply.wait() is True
