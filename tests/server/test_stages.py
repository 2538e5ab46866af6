"""The engine's and the detokenizer's part of the ring, without processes: messages in and out."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

import pytest

from minisgl.core import SamplingParams
from minisgl.message.records import (
    Ask,
    Began,
    Cancel,
    Decode,
    Encode,
    Generate,
    Hello,
    Ids,
    Load,
    Opened,
    Order,
    Over,
    Piece,
    Ready,
    Refused,
    Reported,
    Scored,
    Stop,
    Text,
    Token,
)
from minisgl.server.detokenize import Answers
from minisgl.server.generate import Service
from minisgl.server.tokenize import handle
from tests.engine.test_stops import PIECES, Bytes
from tests.hash_engine import VOCAB, expected, hash_engine


class Spelled(Bytes):
    """The codec of thirteen tokens, which also spells them."""

    def spell(self, token: int) -> bytes:
        return PIECES[token]


def service(**options: Any) -> Service:
    return Service(hash_engine(codec=Bytes(), record=False, **options), "hash")


def finish(serving: Service) -> list[Any]:
    """All that a service says until nothing is left to do."""
    said: list[Any] = []
    while serving.busy:
        said += serving.step()
    return said


def of(rid: int, said: Iterable[Any]) -> list[Any]:
    return [message for message in said if getattr(message, "rid", None) == rid]


# ---- the engine ----------------------------------------------------------------------------------


def test_a_request_begins_is_told_token_by_token_and_ends_once() -> None:
    serving = service()
    sampling = SamplingParams(max_tokens=6, ignore_eos=True)
    (began,) = serving.take([Generate(3, (1, 2, 1), sampling)])
    assert began == Began(3, 3, None, (), False)
    said = finish(serving)
    mine = of(3, said)
    assert [m.token for m in mine[:-1]] == list(expected((1, 2, 1), sampling, 40))
    over = mine[-1]
    assert isinstance(over, Over) and over.reason == "length" and over.first is not None
    assert [m.step for m in said if isinstance(m, Load)] == list(range(6))


@pytest.mark.parametrize("depth", [1, 2])
def test_many_at_once_say_what_each_says_alone(depth: int) -> None:
    serving, random, asked = service(depth=depth, admission="optimistic"), Random(depth), {}
    for rid in range(30):
        prompt = tuple(random.randrange(1, 4) for _ in range(random.randrange(1, 12)))
        sampling = SamplingParams(max_tokens=random.randrange(0, 12), seed=rid, temperature=1.0)
        asked[rid] = prompt, sampling
    messages = [Generate(rid, *what) for rid, what in asked.items()]
    said = [*serving.take(messages), *finish(serving)]
    for rid, (prompt, sampling) in asked.items():
        mine = of(rid, said)
        assert isinstance(mine[0], Began) and isinstance(mine[-1], Over)
        assert tuple(m.token for m in mine[1:-1]) == expected(prompt, sampling, 40)


def test_a_request_that_can_never_run_is_refused_at_once() -> None:
    serving = service()
    wrong: list[Any] = [Generate(0, (), SamplingParams()), Generate(1, (VOCAB,), SamplingParams())]
    wrong += [Generate(2, (1,) * 40, SamplingParams())]
    wrong += [Generate(3, (1,), SamplingParams(logit_bias={VOCAB: 1.0}))]
    said = serving.take(wrong)
    assert [m.rids for m in said if isinstance(m, Refused)] == [(0,), (1,), (2,), (3,)]
    assert not serving.busy and serving.step() == []


def test_a_cancelled_request_stops_with_the_next_step() -> None:
    serving = service(depth=2)
    serving.take([Generate(0, (1, 2), SamplingParams(max_tokens=30, ignore_eos=True))])
    serving.step()
    serving.take([Cancel(0), Cancel(99)])
    said = finish(serving)
    assert [m for m in of(0, said) if isinstance(m, Over)][0].reason == "abort"
    assert not any(isinstance(m, Token) for m in said)
    assert serving.engine.gauges.running == 0


def test_logprobs_and_the_prompts_come_before_the_first_token() -> None:
    serving = service()
    sampling = SamplingParams(max_tokens=2, logprobs=0, prompt_logprobs=0, ignore_eos=True)
    serving.take([Generate(0, (1, 2, 3), sampling, echo=True)])
    scored, one, two, over = of(0, finish(serving))
    assert isinstance(scored, Scored) and scored.scores[0] is None and len(scored.scores) == 3
    assert [m.score.token for m in (one, two)] == [one.token, two.token]
    assert isinstance(over, Over)
    serving.take([Generate(1, (1, 2, 3), SamplingParams(max_tokens=0, prompt_logprobs=0))])
    scored, over = of(1, finish(serving))
    assert len(scored.scores) == 3 and over.reason == "length" and over.first is None


def test_a_paused_service_takes_messages_and_steps_as_often_as_it_is_told() -> None:
    serving = service(depth=1)
    serving.take([Order(0, "pause", {})])
    sampling = SamplingParams(max_tokens=9, ignore_eos=True)
    assert isinstance(serving.take([Generate(0, (1, 2), sampling)])[0], Began)
    assert not serving.busy and serving.step() == []
    serving.take([Order(1, "step", {"steps": 3})])
    assert len([m for m in finish(serving) if isinstance(m, Token)]) == 3
    serving.take([Order(2, "resume", {}), Order(3, "step", {"steps": 1})])
    assert len([m for m in finish(serving) if isinstance(m, Token)]) == 6
    paused, stepped, resumed, refused = serving.reports()
    assert paused.found is not None and paused.found["paused"] is True
    assert stepped.error is None and resumed.found is not None
    assert refused == Reported(3, None, "the engine is not paused, so it steps by itself")
    assert serving.reports() == []


@pytest.mark.parametrize(
    ("verb", "given", "says"),
    [
        ("dance", {}, "unknown order 'dance'"),
        ("step", {"steps": "3"}, "unknown order 'step'"),
        ("abort", {"rids": ["a"]}, "must be an integer"),
        ("record", {"on": True}, "start the server with --record FILE"),
    ],
)
def test_an_order_that_makes_no_sense_is_answered(verb: str, given: Any, says: str) -> None:
    serving = service()
    serving.take([Order(5, verb, given)])
    (report,) = serving.reports()
    assert report.key == 5 and report.found is None and says in (report.error or "")


def test_lost_workers_end_the_service_once_the_requests_have_ended() -> None:
    serving = service(depth=2)
    runner: Any = serving.engine._runner
    serving.take([Generate(0, (1, 2), SamplingParams(max_tokens=3, ignore_eos=True))])
    serving.step()
    runner.broken = "rank 1 is gone"
    said = list[Any]()
    with pytest.raises(RuntimeError, match="rank 1 is gone"):
        while serving.busy:
            said += serving.step()
    assert isinstance(of(0, said)[-1], Over)


def test_a_stop_passes_on_once_all_is_done() -> None:
    serving = service()
    serving.take([Order(0, "pause", {})])
    serving.take([Generate(0, (1, 2), SamplingParams(max_tokens=5, ignore_eos=True)), Stop()])
    said = []
    while not serving.stopped:
        assert serving.busy
        said += serving.step()
    assert len([m for m in said if isinstance(m, Token)]) == 5 and said[-1] == Stop()


def test_a_hello_is_answered_with_what_the_engine_is() -> None:
    (ready,) = service().take([Hello()])
    assert isinstance(ready, Ready) and ready.model == "hash" and ready.max_seq_len == 40
    assert ready.config["num_pages"] == 40 and ready.vocab_size == VOCAB


# ---- the tokenizer -------------------------------------------------------------------------------


def test_each_of_several_answers_gets_its_own_seed_and_the_same_prompt() -> None:
    for seed in (None, 5, 2**63 - 2):
        sampling = SamplingParams(seed=seed, temperature=1.0)
        made, refused = handle(Ask((4, 5, 6), Ids((1, 2)), sampling, whole=True), None)
        assert refused == [] and [m.rid for m in made if isinstance(m, Generate)] == [4, 5, 6]
        seeds = [m.sampling.seed for m in made if isinstance(m, Generate)]
        if seed is None:
            assert seeds == [None] * 3
        else:
            assert len(set(seeds)) == 3 and seeds[0] == seed
        assert all(m.prompt == (1, 2) and m.whole for m in made if isinstance(m, Generate))


def test_without_tokenizer_files_text_is_refused_and_ids_pass() -> None:
    made, refused = handle(Ask((1, 2), Text("hi"), SamplingParams()), None)
    assert made == [] and isinstance(refused[0], Refused) and refused[0].rids == (1, 2)
    assert "no tokenizer files" in refused[0].reason
    for question in (Encode(7, Text("hi")), Decode(7, (1,))):
        _, (report,) = handle(question, None)
        assert isinstance(report, Reported) and report.key == 7 and report.error
    for message in (Cancel(1), Hello(), Stop(), Order(1, "pause", {})):
        assert handle(message, None) == ([message], [])


# ---- the detokenizer -----------------------------------------------------------------------------


def answers() -> Answers:
    codec: Any = Spelled()
    return Answers(codec)


def test_tokens_of_one_call_become_one_piece_and_pieces_joined_are_the_text() -> None:
    made = answers()
    (opened,) = made.take([Began(1, 3, (1, 2, 3), (), False)])
    assert opened == Opened(1, 3, "abab")
    out = made.take([Token(1, 3), Token(1, 7), Token(1, 8)])
    assert out == [Piece(1, "abé", 3)]
    over = Over(1, "stop", True, None, 0, 0.5)
    assert made.take([Token(1, 4), Token(1, 0), over]) == [Piece(1, "ba", 2, (), over)]
    assert made.take([Token(1, 4), over]) == [], "it is over"


def test_an_answer_that_is_wanted_whole_comes_once() -> None:
    made = answers()
    made.take([Began(1, 3, None, ("b b",), True)])
    assert made.take([Token(1, 2)]) == [] == made.take([Token(1, 6)])
    over = Over(1, "stop", False, 1, 0, 0.5)
    assert made.take([Token(1, 2), over]) == [Piece(1, "b b"[:1], 3, (), over)]


def test_without_tokenizer_files_tokens_are_counted_and_named() -> None:
    made = Answers(None)
    made.take([Began(1, 3, (5,), (), False)])
    assert made.take([Token(1, 3), Token(1, 7)]) == [Piece(1, "", 2)]
