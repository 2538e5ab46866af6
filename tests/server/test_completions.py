"""What OpenAI's own client gets from the server is what the model says offline."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import httpx
import openai
import pytest

from minisgl.core import SamplingParams
from minisgl.llm import LLM, Output
from minisgl.tiny import path as tiny
from tests.server.served import Served

STORY = "Tell me a story about Nora."


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def said(offline: LLM, prompt: Any, **sampling: Any) -> Output:
    (output,) = offline.generate([prompt], SamplingParams(**sampling), progress=False)
    return output


# ---- chat ----------------------------------------------------------------------------------------


def test_a_chat_is_answered_as_offline(client: openai.OpenAI, offline: LLM) -> None:
    want = said(offline, user(STORY), max_tokens=4000)
    got = client.chat.completions.create(model="tiny", messages=user(STORY), temperature=0)
    (choice,) = got.choices
    assert choice.message.content == want.text and choice.message.role == "assistant"
    assert choice.finish_reason == want.finish_reason == "stop"
    assert got.usage is not None and got.object == "chat.completion" and got.model == "tiny"
    counts = len(want.prompt_token_ids), len(want.token_ids)
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == counts
    assert got.usage.total_tokens == sum(counts)


def test_a_stream_joined_is_the_answer(client: openai.OpenAI, offline: LLM) -> None:
    want = said(offline, user(STORY), max_tokens=40)
    stream = client.chat.completions.create(
        model="tiny",
        messages=user(STORY),
        temperature=0,
        max_completion_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == want.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "length"]
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == 40
    assert len({chunk.id for chunk in [*chunks, last]}) == 1
    assert len(chunks) > 5, "it came piece by piece"


def test_parts_of_a_message_are_joined_and_fields_that_say_nothing_are_taken(
    client: openai.OpenAI, offline: LLM
) -> None:
    parts: list[Any] = [{"type": "text", "text": "Tell me a story "}]
    parts += [{"type": "text", "text": "about Nora."}]
    got = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": parts}],
        temperature=0,
        max_tokens=12,
        n=1,
        user="me",
        response_format={"type": "text"},
        extra_body={"tools": [], "logit_bias": None, "store": False},
    )
    assert got.choices[0].message.content == said(offline, user(STORY), max_tokens=12).text


def test_a_conversation_reuses_what_was_computed(client: openai.OpenAI) -> None:
    messages = user("Tell me a story about a brave otter named Zoe.")
    first = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    messages += [first.choices[0].message.model_dump(), *user("What now?")]
    second = client.chat.completions.create(
        model="tiny", messages=messages, temperature=0, max_tokens=1
    )
    assert second.usage is not None and second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached and cached % 16 == 0 and cached > 16


def test_logprobs_of_a_chat_are_the_models(client: openai.OpenAI, offline: LLM) -> None:
    want = said(offline, user("Who is Nora?"), max_tokens=30, logprobs=3)
    for stream in (False, True):
        asked: Any = {"model": "tiny", "messages": user("Who is Nora?"), "temperature": 0}
        asked |= {"max_tokens": 30, "logprobs": True, "top_logprobs": 3, "stream": stream}
        got: Any = client.chat.completions.create(**asked)
        choices = [chunk.choices[0] for chunk in got] if stream else [got.choices[0]]
        content = [e for c in choices if c.logprobs for e in c.logprobs.content]
        text = "".join((c.delta if stream else c.message).content or "" for c in choices)
        assert text == want.text and want.logprobs is not None
        ends = content[-1].token if want.finish_reason == "stop" else ""
        assert b"".join(bytes(entry.bytes) for entry in content).decode() == text + ends
        for entry, score in zip(content, want.logprobs, strict=True):
            assert entry.logprob == pytest.approx(score.logprob, abs=1e-4)
            tops = [top.logprob for top in entry.top_logprobs]
            assert tops == pytest.approx([value for _, value in score.top], abs=1e-4)


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_each_of_n_answers_has_its_own_seed(kind: str, client: openai.OpenAI, offline: LLM) -> None:
    asked: Any = {"model": "tiny", "n": 4, "seed": 11, "temperature": 8.0, "max_tokens": 12}
    prompt: Any = user(STORY) if kind == "chat" else "Once upon"
    want = [
        said(offline, prompt, seed=11 + i, temperature=8.0, max_tokens=12).text for i in range(4)
    ]
    assert len(set(want)) > 1
    for stream in (False, True):
        texts = dict.fromkeys(range(4), "")
        if kind == "chat":
            got: Any = client.chat.completions.create(messages=prompt, stream=stream, **asked)
        else:
            got = client.completions.create(prompt=prompt, stream=stream, **asked)
        for chunk in got if stream else [got]:
            for choice in chunk.choices:
                part = choice.delta if stream and kind == "chat" else choice
                text = choice.text if kind == "text" else (part if stream else part.message).content
                texts[choice.index] += text or ""
        assert list(texts.values()) == want


def test_without_a_seed_answers_differ(client: openai.OpenAI) -> None:
    got = client.completions.create(model="tiny", prompt="The", n=8, max_tokens=20, temperature=1.8)
    assert len({choice.text for choice in got.choices}) > 4


# ---- text ----------------------------------------------------------------------------------------


def test_prompts_of_every_kind_are_answered_in_their_order(
    client: openai.OpenAI, offline: LLM
) -> None:
    codec = offline.engine.codec
    assert codec is not None
    texts = ["Once upon a time", "The cat", "Nora is"]
    ids = [codec.encode(text) for text in texts]
    want = [said(offline, text, max_tokens=10).text for text in texts]
    for prompt in (texts, ids, texts[0], ids[0]):
        got = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=10)
        num = len(got.choices)
        assert [choice.text for choice in got.choices] == want[:num]
        assert [choice.index for choice in got.choices] == list(range(num))
        assert num == (3 if prompt in (texts, ids) else 1)
    assert len(client.completions.create(model="tiny", prompt="a b").choices[0].text) > 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_text_before_it(
    stream: bool, client: openai.OpenAI, offline: LLM
) -> None:
    stops = ["forest with her", "kite"]
    want = said(offline, user(STORY), max_tokens=100, stop=stops)
    assert want.finish_reason == "stop" and want.stopped_by == "forest with her"
    asked: Any = {"model": "tiny", "messages": user(STORY), "temperature": 0, "max_tokens": 100}
    got: Any = client.chat.completions.create(stop=stops, stream=stream, **asked)
    choices = [chunk.choices[0] for chunk in got] if stream else [got.choices[0]]
    text = "".join((c.delta if stream else c.message).content or "" for c in choices)
    assert text == want.text and choices[-1].finish_reason == "stop"


def test_a_bias_decides_and_ignore_eos_goes_on(client: openai.OpenAI, offline: LLM) -> None:
    codec = offline.engine.codec
    assert codec is not None
    (token,) = codec.encode("x")
    got = client.completions.create(
        model="tiny", prompt="The", max_tokens=5, temperature=0, logit_bias={str(token): 100}
    )
    assert got.choices[0].text == "xxxxx" and got.choices[0].finish_reason == "length"
    eos = min(offline.engine.eos_ids)
    for goes_on in (False, True):
        got = client.completions.create(
            model="tiny",
            prompt="The",
            max_tokens=5,
            temperature=0,
            logit_bias={str(eos): 100},
            extra_body={"ignore_eos": goes_on},
        )
        assert got.usage is not None and got.usage.completion_tokens == (5 if goes_on else 1)
        assert got.choices[0].finish_reason == ("length" if goes_on else "stop")


def test_penalties_and_filters_are_honoured(client: openai.OpenAI, offline: LLM) -> None:
    cases: list[dict[str, Any]] = [
        {"repetition_penalty": 10.0},
        {"presence_penalty": 2.0, "frequency_penalty": 2.0, "temperature": 2.0, "seed": 4},
        {"temperature": 2.5, "top_k": 5, "seed": 3},
        {"temperature": 2.5, "top_p": 0.3, "seed": 3},
        {"temperature": 2.5, "min_p": 0.2, "seed": 3},
        {"stop_token_ids": [14]},
    ]
    texts = []
    for case in cases:
        want = said(offline, "Nora and Mia", max_tokens=24, **case)
        asked = {"temperature": 0.0, **case}
        got = client.completions.create(
            model="tiny", prompt="Nora and Mia", max_tokens=24, extra_body=asked
        )
        assert got.choices[0].text == want.text, case
        texts.append(want.text)
    assert len(set(texts)) == len(cases)


def test_no_max_tokens_in_a_chat_means_what_the_context_leaves(client: openai.OpenAI) -> None:
    got = client.chat.completions.create(
        model="tiny", messages=user("x"), temperature=0, extra_body={"ignore_eos": True}
    )
    assert got.usage is not None and got.usage.total_tokens == 4096
    assert got.choices[0].finish_reason == "length"


# ---- logprobs and echo: what lm-eval's local-completions sends and reads -------------------------


def loglikelihood(server: Served, prompts: list[list[int]], starts: list[int]) -> Any:
    """The body that lm-eval 0.4.13 sends, byte for byte as it was recorded, and how it reads the
    answer. (With lm-eval itself 44 loglikelihoods were within 3e-5 of its own transformers.)
    """
    body = (
        f'{{"model": "tiny", "prompt": {prompts}, "temperature": 0, "max_tokens": 1, '
        '"logprobs": 1, "seed": 1234, "echo": true}'
    )
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/completions", content=body, headers=headers, timeout=60)
    choices = sorted(answer.json()["choices"], key=lambda choice: int(choice["index"]))
    out = []
    for choice, start in zip(choices, starts, strict=True):
        scores = choice["logprobs"]["token_logprobs"][start:-1]
        tops = choice["logprobs"]["top_logprobs"][start:-1]
        greedy = all(score == max(top.values()) for score, top in zip(scores, tops, strict=True))
        out.append((sum(scores), greedy))
    return out


def test_a_loglikelihood_is_what_transformers_computes(server: Served, offline: LLM) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny(), dtype=torch.float32)
    codec = offline.engine.codec
    assert codec is not None
    pairs = [("Once upon a", " time there was"), ("Once upon a", " kite"), ("The cat", " sat.")]
    prompts, starts, want = [], [], []
    for context, rest in pairs:
        ids, start = codec.encode(context + rest), len(codec.encode(context))
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)[start - 1 : -1]
        taken = torch.tensor(ids[start:])
        total = float(scores.gather(1, taken[:, None]).sum())
        want.append((total, bool((scores.argmax(-1) == taken).all())))
        prompts.append(ids)
        starts.append(start)
    got = loglikelihood(server, prompts, starts)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in want] == [True, False, False]
    assert [g for g, _ in got] == pytest.approx([w for w, _ in want], abs=1e-3)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_an_echo_is_the_prompt_with_its_logprobs(
    max_tokens: int, stream: bool, client: openai.OpenAI, offline: LLM
) -> None:
    prompt = "Once upon a time there was a fox"
    want = said(offline, prompt, max_tokens=max_tokens, prompt_logprobs=2, logprobs=2)
    asked: Any = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    got: Any = client.completions.create(echo=True, logprobs=2, stream=stream, **asked)
    choices = [chunk.choices[0] for chunk in got] if stream else [got.choices[0]]
    text = "".join(choice.text for choice in choices)
    assert text == prompt + (want.text or "") and choices[-1].finish_reason == "length"
    tokens = [t for c in choices for t in c.logprobs.tokens]
    scores = [s for c in choices for s in c.logprobs.token_logprobs]
    offsets = [o for c in choices for o in c.logprobs.text_offset]
    tops = [t for c in choices for t in c.logprobs.top_logprobs]
    assert "".join(tokens) == text and len(tops) == len(scores)
    assert offsets == [len("".join(tokens[:i])) for i in range(len(tokens))]
    assert scores[0] is None and tops[0] is None
    every = [*(want.prompt_logprobs or ())[1:], *(want.logprobs or ())]
    assert scores[1:] == pytest.approx([s.logprob for s in every if s], abs=1e-4)
    for top, score in zip(tops[1:], scores[1:], strict=True):
        assert 2 <= len(top) <= 3 and score in top.values()


def test_an_echo_without_logprobs_and_of_ids_is_text(client: openai.OpenAI, offline: LLM) -> None:
    codec = offline.engine.codec
    assert codec is not None
    for prompt in ("Once <|im_end|> upon", codec.encode("Once <|im_end|> upon")):
        got = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=0, echo=True, temperature=0
        )
        assert got.choices[0].text == "Once <|im_end|> upon"
        assert got.usage is not None and got.usage.completion_tokens == 0


# ---- what `vllm bench serve` sends and reads -----------------------------------------------------


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_traffic_in_the_shape_of_vllms_benchmark_is_read_by_its_rules(
    backend: str, server: Served, offline: LLM
) -> None:
    """The payloads and the parsing of vLLM's backend_request_func, as recorded from its source."""
    payload: dict[str, Any] = {"model": "tiny", "temperature": 0.0, "stream": True}
    payload |= {"stream_options": {"include_usage": True}, "ignore_eos": True}
    prompt: Any = "Tell me a story about Nora."
    if backend == "openai":
        payload |= {"prompt": prompt, "repetition_penalty": 1.0, "max_tokens": 20, "logprobs": None}
    else:
        content = [{"type": "text", "text": prompt}]
        payload |= {"messages": [{"role": "user", "content": content}]}
        payload |= {"max_completion_tokens": 20}
        prompt = user(prompt)
    path = "/v1/completions" if backend == "openai" else "/v1/chat/completions"
    generated, output_tokens, most_recent, ended = "", 0, None, False
    headers = {"Authorization": "Bearer none", "Content-Type": "application/json"}
    with httpx.stream("POST", server.url + path, json=payload, headers=headers) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            line = line.strip()
            if not line or line.startswith(":"):
                continue
            chunk = line.removeprefix("data: ")
            if chunk == "[DONE]":
                ended = True
                continue
            data = json.loads(chunk)
            if choices := data.get("choices"):
                delta = choices[0].get("text") or choices[0].get("delta", {}).get("content")
                generated += delta or ""
                most_recent = choices[0]["finish_reason"]
            elif usage := data.get("usage"):
                output_tokens = usage.get("completion_tokens")
    want = said(offline, prompt, max_tokens=20, ignore_eos=True)
    assert ended and output_tokens == 20 and most_recent == "length"
    assert generated == want.text


# ---- many at once --------------------------------------------------------------------------------


def test_many_at_once_are_not_mixed_up(server: Served, offline: LLM) -> None:
    names = ["Nora", "Mia", "Anna", "Ella", "Lucy", "Rosa", "Lily", "Emma"]
    prompts = [f"Tell me a story about {name}." for name in names]
    chats: list[Any] = [user(prompt) for prompt in prompts]
    outputs = offline.generate(chats, SamplingParams(max_tokens=60), progress=False)
    want = [output.text for output in outputs]

    async def one(api: openai.AsyncOpenAI, i: int) -> None:
        asked: Any = {"model": "tiny", "messages": chats[i % 8], "temperature": 0, "max_tokens": 60}
        if i % 3:
            stream: Any = await api.chat.completions.create(stream=True, **asked)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        else:
            whole: Any = await api.chat.completions.create(**asked)
            text = whole.choices[0].message.content
        assert text == want[i % 8]

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as api:
            await asyncio.gather(*(one(api, i) for i in range(96)))

    asyncio.run(run())


# ---- the other endpoints -------------------------------------------------------------------------


def test_the_model_is_listed_with_its_context(client: openai.OpenAI, server: Served) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "minisgl")
    assert model.to_dict()["max_model_len"] == 4096
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-4' does not exist"):
        client.models.retrieve("gpt-4")
    assert httpx.get(f"{server.url}/health").json() == {"status": "ready"}


def test_text_is_tokenized_and_ids_are_text_again(server: Served, offline: LLM) -> None:
    codec = offline.engine.codec
    assert codec is not None
    text = "Nora's kite, 日本 🙂"
    got = httpx.post(f"{server.url}/tokenize", json={"prompt": text}).json()
    assert got == {
        "tokens": codec.encode(text),
        "count": len(codec.encode(text)),
        "max_model_len": 4096,
    }
    back = httpx.post(f"{server.url}/detokenize", json={"tokens": got["tokens"]}).json()
    assert back == {"prompt": text}
    chat = httpx.post(f"{server.url}/tokenize", json={"messages": user("hi")}).json()
    assert chat["tokens"] == codec.chat(user("hi"))


def test_metrics_count_what_was_served(server: Served, client: openai.OpenAI) -> None:
    def read() -> dict[str, float]:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name.replace('{model_name="tiny"}', ""): float(value) for name, _, value in pairs}

    before = read()
    client.completions.create(model="tiny", prompt=[5] * 40, max_tokens=7, temperature=0)
    client.completions.create(model="tiny", prompt=[5] * 40, max_tokens=7, temperature=0)
    after = read()

    def gained(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert gained("minisgl:prompt_tokens_total") == 80
    assert gained("minisgl:prefix_cache_hits_total") == 32
    assert 2 <= gained("minisgl:generation_tokens_total") <= 14
    assert gained("minisgl:time_to_first_token_seconds_count") == 2
    assert gained("minisgl:e2e_request_latency_seconds_count") == 2
    assert gained("minisgl:request_prompt_tokens_sum") == 80
    assert gained("minisgl:request_generation_tokens_sum") == gained(
        "minisgl:generation_tokens_total"
    )
    assert after["minisgl:num_preemptions_total"] == 0 <= after["minisgl:kv_cache_usage_perc"] < 1
    assert after["minisgl:num_requests_running"] == after["minisgl:num_requests_waiting"] == 0
    assert after["minisgl:num_requests_open"] == 0
    assert 0 < after["minisgl:time_to_first_token_seconds_sum"] < math.inf
