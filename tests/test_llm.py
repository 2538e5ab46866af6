"""Run to completion: what goes in, in which order it comes out, what an error leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import minisgl
from minisgl import LLM, SamplingParams
from minisgl.llm import Output, Piece
from tests.checkpoints import write

PROMPTS = ["Once upon a time", "The fox", "One day a bear named Tom"]
CHAT = [{"role": "user", "content": "What is 2 + 3?"}]
SHORT = SamplingParams(max_tokens=12)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("tiny", check=True) as made:
        yield made


def usable(llm: LLM) -> bool:
    """Whether nothing is left over and the engine still answers right."""
    (answer,) = llm.generate(PROMPTS[0], SHORT)
    gauges = llm.engine.gauges
    return gauges.running == gauges.waiting == 0 and len(answer.token_ids) == 12


def test_outputs_come_in_order_with_all_that_is_known(llm: LLM) -> None:
    sampling = [SamplingParams(max_tokens=n, logprobs=1, prompt_logprobs=0) for n in (20, 3, 9)]
    outputs = llm.generate(PROMPTS, sampling)
    for output, prompt, params in zip(outputs, PROMPTS, sampling, strict=True):
        (alone,) = llm.generate(prompt, SamplingParams(max_tokens=params.max_tokens))
        assert (output.text, output.token_ids) == (alone.text, alone.token_ids)
        assert output.finish_reason == "length" and output.error is None
        assert output.logprobs is not None and len(output.logprobs) == params.max_tokens
        assert output.prompt_logprobs is not None and alone.logprobs is None
        assert len(output.prompt_logprobs) == len(output.prompt_token_ids)


def test_one_prompt_of_each_kind_is_a_list_of_one(llm: LLM) -> None:
    (text,) = llm.generate("The fox", SHORT)
    ids = list(text.prompt_token_ids)
    for prompt in (ids, tuple(ids), np.array(ids), [ids], [np.array(ids)], ["The fox"]):
        given: Any = prompt
        (again,) = llm.generate(given, SHORT)
        assert again.token_ids == text.token_ids and again.prompt_token_ids == tuple(ids)
    (chat,) = llm.generate(CHAT, SHORT)
    assert llm.chat(CHAT, SHORT)[0].text == chat.text
    two = llm.chat([CHAT, CHAT], SHORT)
    assert [output.text for output in two] == [chat.text] * 2
    kinds: Any = ["The fox", ids, CHAT]
    mixed = llm.generate(kinds, SHORT)
    assert [output.text for output in mixed] == [text.text, text.text, chat.text]
    assert llm.generate([]) == llm.chat([]) == []


def test_cached_tokens_are_counted(llm: LLM) -> None:
    ids = list(range(40, 90))
    first, second = (llm.generate([ids], SHORT)[0] for _ in range(2))
    assert (first.num_cached, second.num_cached) == (0, 48)


@pytest.mark.parametrize(
    ("prompts", "error", "says"),
    [
        (["fine", ""], ValueError, "prompt 1: .*empty prompt"),
        (["fine", 7], TypeError, "prompt 1: a prompt is a text"),
        ([[1, 2], [10**9]], ValueError, "prompt 1: token id 1000000000 is out of the vocabulary"),
        (["fine", None], TypeError, "prompt 1"),
        (None, TypeError, "prompt 0"),
        (3, TypeError, "prompt 0"),
        ([[1] * 100_000], ValueError, "prompt 0: .*shorten the prompt"),
        (["x"] * 3, ValueError, "3 prompts came with 2 SamplingParams"),
    ],
)
def test_a_wrong_prompt_is_named_before_any_runs(
    llm: LLM, prompts: Any, error: type[Exception], says: str
) -> None:
    steps = len(llm.engine.trace)
    sampling = [SHORT, SHORT] if "SamplingParams" in says else SHORT
    with pytest.raises(error, match=says):
        llm.generate(prompts, sampling)
    assert len(llm.engine.trace) == steps and usable(llm)


def test_chat_takes_conversations_only(llm: LLM) -> None:
    wrong: Any = ["hello"]
    with pytest.raises(TypeError, match="conversation 0 must be a list of messages, got 'hello'"):
        llm.chat(wrong)


def test_an_interrupt_aborts_what_is_left_and_the_engine_goes_on(llm: LLM) -> None:
    def interrupt(record: minisgl.StepRecord) -> None:
        llm.engine.observers.clear()
        raise KeyboardInterrupt

    llm.engine.observers.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, SamplingParams(max_tokens=50))
    last = list(llm.engine.requests.values())[-3:]
    assert [request.finish for request in last] == ["abort"] * 3
    assert usable(llm)


def test_a_bar_is_drawn_only_where_somebody_looks(
    llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.generate(PROMPTS, SHORT)
    llm.generate(PROMPTS, SHORT, progress=False)
    assert capsys.readouterr().err == ""


# ---- streams -------------------------------------------------------------------------------------


def joined(pieces: list[Piece]) -> tuple[str, tuple[int, ...]]:
    texts = [piece.text for piece in pieces if piece.text is not None]
    return "".join(texts), tuple(token for piece in pieces for token in piece.token_ids)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(max_tokens=40),
        SamplingParams(max_tokens=200),
        SamplingParams(max_tokens=40, stop=["ox liv", "the zebra runs"]),
        SamplingParams(max_tokens=40, stop="never said"),
        SamplingParams(max_tokens=1),
        SamplingParams(max_tokens=0),
        SamplingParams(temperature=100.0, max_tokens=80, seed=3),
    ],
    ids=str,
)
def test_a_stream_joined_is_the_whole_text(llm: LLM, sampling: SamplingParams) -> None:
    pieces = list(llm.stream("Once upon a time", sampling))
    (whole,) = llm.generate("Once upon a time", sampling)
    assert joined(pieces) == (whole.text, whole.token_ids)
    assert pieces[-1].finish_reason == whole.finish_reason
    assert all(piece.finish_reason is None and piece.text for piece in pieces[:-1])
    if sampling.max_tokens == 40 and not sampling.stop:
        assert len(pieces) > 30


def test_streams_run_by_turns_and_beside_a_list(llm: LLM) -> None:
    long = SamplingParams(max_tokens=30)
    want = [output.text for output in llm.generate(PROMPTS[:2], long)]
    streams = [llm.stream(prompt, long) for prompt in PROMPTS[:2]]
    got = [[next(stream)] for stream in streams]
    got[0] += [next(streams[0]), next(streams[0])]
    llm.generate(PROMPTS[2], SHORT)  # runs all there is to its end
    for pieces, stream in zip(got, streams, strict=True):
        pieces += stream
    assert [joined(pieces)[0] for pieces in got] == want


def test_a_stream_that_is_left_aborts_its_request(llm: LLM) -> None:
    stream: Any = llm.stream("The fox", SamplingParams(max_tokens=100))
    next(stream)
    request = list(llm.engine.requests.values())[-1]
    stream.close()
    assert request.finish == "abort" and usable(llm)
    with pytest.raises(ValueError, match="empty prompt"):
        llm.stream("")


def test_a_model_without_tokenizer_gives_ids_and_no_text(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = write("qwen3", tmp_path_factory.mktemp("qwen3"))
    with LLM(folder) as bare:
        (output,) = bare.generate([5, 6, 7], SHORT)
        assert isinstance(output, Output) and output.text is None and output.token_ids
        pieces = list(bare.stream([5, 6, 7], SHORT))
        assert joined(pieces) == ("", output.token_ids) and pieces[0].text is None
        with pytest.raises(ValueError, match="prompt 0: .*no tokenizer files"):
            bare.generate("text")
    with pytest.raises(RuntimeError, match="closed"):
        bare.generate([5], SHORT)
