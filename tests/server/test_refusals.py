"""What cannot be served is refused in OpenAI's form, by name, and never ignored."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.served import Served

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT = {"prompt": "hi", "max_tokens": 2}
PATHS = {"chat": "/v1/chat/completions", "text": "/v1/completions"}
TOOL = {"type": "function", "function": {"name": "f"}}


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which has all four fields of OpenAI's."""
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("chat", {"tools": [TOOL]}, "tools"),
        ("chat", {"tool_choice": "auto"}, "tool_choice"),
        ("chat", {"functions": [{"name": "f"}]}, "functions"),
        ("chat", {"response_format": {"type": "json_object"}}, "response_format"),
        ("chat", {"modalities": ["text", "audio"]}, "modalities"),
        ("chat", {"audio": {"voice": "alloy"}}, "audio"),
        ("chat", {"reasoning_effort": "low"}, "reasoning_effort"),
        ("chat", {"store": True}, "store"),
        ("chat", {"logit_mask": [1]}, "logit_mask"),
        ("chat", {"guided_json": {}}, "guided_json"),
        ("chat", {"nonsense": 1}, "nonsense"),
        ("chat", {"prompt": "both"}, "prompt"),
        ("text", {"best_of": 2}, "best_of"),
        ("text", {"suffix": "end"}, "suffix"),
        ("text", {"max_completion_tokens": 2}, "max_completion_tokens"),
        ("chat", {"messages": []}, "messages"),
        ("chat", {"messages": "hi"}, "messages"),
        ("chat", {"messages": [{"role": "user"}]}, "messages[0]"),
        ("chat", {"messages": [{"role": "", "content": "x"}]}, "messages[0].role"),
        ("chat", {"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        (
            "chat",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
        ),
        (
            "chat",
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "messages[0].co",
        ),
        (
            "chat",
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0]",
        ),
        ("chat", {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages"),
        ("chat", {"temperature": -1}, "temperature"),
        ("chat", {"temperature": "hot"}, "temperature"),
        ("chat", {"temperature": True}, "temperature"),
        ("chat", {"top_p": 0}, "top_p"),
        ("chat", {"top_p": 1.1}, "top_p"),
        ("chat", {"top_k": 0}, "top_k"),
        ("chat", {"min_p": 2}, "min_p"),
        ("chat", {"n": 0}, "n"),
        ("chat", {"n": 129}, "n"),
        ("chat", {"n": 1.5}, "n"),
        ("chat", {"seed": 2**63}, "seed"),
        ("chat", {"stop": ["a"] * 65}, "stop"),
        ("chat", {"stop": ""}, "stop"),
        ("chat", {"stop": "a" * 2000}, "stop"),
        ("chat", {"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ("chat", {"presence_penalty": 3}, "presence_penalty"),
        ("chat", {"frequency_penalty": -3}, "frequency_penalty"),
        ("chat", {"repetition_penalty": 0}, "repetition_penalty"),
        ("chat", {"logit_bias": {"x": 1}}, "logit_bias"),
        ("chat", {"logit_bias": {"1": 101}}, "logit_bias"),
        ("chat", {"logit_bias": {"1": None}}, "logit_bias"),
        ("chat", {"logit_bias": {"01": 1, "1": 2}}, "logit_bias"),
        ("chat", {"logit_bias": {"9999": 1}}, None),  # out of this model's vocabulary
        ("chat", {"stop_token_ids": [9999]}, None),
        ("chat", {"logprobs": 3}, "logprobs"),
        ("chat", {"top_logprobs": 3}, "top_logprobs"),
        ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("text", {"logprobs": 21}, "logprobs"),
        ("text", {"logprobs": True}, "logprobs"),
        ("chat", {"max_tokens": -1}, "max_tokens"),
        ("chat", {"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ("chat", {"stream": "yes"}, "stream"),
        ("chat", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("chat", {"stream": True, "stream_options": {"x": 1}}, "stream_options"),
        ("chat", {"model": 3}, "model"),
        ("text", {"prompt": []}, "prompt"),
        ("text", {"prompt": [1, "a"]}, "prompt"),
        ("text", {"prompt": [[1], "a"]}, "prompt"),
        ("text", {"prompt": [True]}, "prompt[0]"),
        ("text", {"prompt": [-1]}, "prompt[0]"),
        ("text", {"prompt": [1.5]}, "prompt[0]"),
        ("text", {"prompt": {"a": 1}}, "prompt"),
        ("text", {"prompt": [["a"]]}, "prompt[0][0]"),
        ("text", {"prompt": ["a"] * 1025}, "prompt"),
        ("text", {"prompt": "", "echo": 1}, "echo"),
        ("text", {"prompt": ["a"] * 1000, "n": 2}, "n"),
        # the engine's own refusals
        ("text", {"prompt": [1] * 4096}, None),
        ("text", {"prompt": "a b c d " * 4000}, None),
        ("text", {"prompt": "a" * 2_000_000}, "prompt"),
        ("text", {"prompt": [1280]}, None),
        ("text", {"prompt": [[1], []]}, None),
        ("text", {"prompt": ""}, None),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_wrong_field_is_a_400_that_names_it(
    path: str, fields: dict[str, Any], param: str | None, server: Served
) -> None:
    body = {**(CHAT if path == "chat" else TEXT), **fields}
    for stream in (False, True):
        if stream and {"stream", "stream_options"} & fields.keys():
            continue
        answer = httpx.post(server.url + PATHS[path], json={"stream": stream, **body}, timeout=60)
        assert answer.status_code == 400, answer.text
        error = error_of(answer)
        assert error["type"] == "invalid_request_error"
        if param is None:
            assert error["param"] is None
        else:
            assert str(error["param"]).startswith(param) or param in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"prompt":' * 5_000,
        b'{"prompt": "\\ud800"}',
        b'{"prompt": NaN}',
        b'{"prompt": "x", "temperature": 1e999}',
        b'{"prompt": "x", "seed": 99999999999999999999999999}',
    ],
    ids=lambda value: str(value[:30]),
)
def test_a_body_that_is_no_request_is_a_400(body: bytes, server: Served) -> None:
    headers = {"content-type": "application/json"}
    for path in PATHS.values():
        answer = httpx.post(server.url + path, content=body, headers=headers, timeout=60)
        assert answer.status_code == 400, answer.text
        error_of(answer)


def test_other_paths_methods_and_kinds_of_body_have_errors_of_the_same_form(server: Served) -> None:
    asked = [
        (404, httpx.get(f"{server.url}/nothing/here")),
        (404, httpx.get(f"{server.url}/health/")),
        (405, httpx.get(f"{server.url}/v1/completions")),
        (405, httpx.delete(f"{server.url}/health")),
        (415, httpx.post(f"{server.url}/v1/completions", content=json.dumps(TEXT))),
        (415, httpx.post(f"{server.url}/v1/completions", data={"prompt": "x"})),
        (413, httpx.post(f"{server.url}/v1/completions", json={"prompt": "x" * (5 << 20)})),
        (404, httpx.post(f"{server.url}/v1/completions", json={**TEXT, "model": "other"})),
        (403, httpx.get(f"{server.url}/admin/config")),
        (400, httpx.post(f"{server.url}/tokenize", json={})),
        (400, httpx.post(f"{server.url}/tokenize", json={"prompt": "a", "messages": []})),
        (400, httpx.post(f"{server.url}/detokenize", json={"tokens": ["a"]})),
        (400, httpx.post(f"{server.url}/detokenize", json={"tokens": [2**31]})),
    ]
    for status, answer in asked:
        assert answer.status_code == status, answer.text
        error_of(answer)
    assert httpx.post(f"{server.url}/detokenize", json={"tokens": [2**31 - 1]}).status_code == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = """model messages prompt max_tokens temperature top_p top_k min_p seed stop n logprobs echo
top_logprobs presence_penalty logit_bias ignore_eos stream stream_options user tools role content
max_completion_tokens stop_token_ids response_format""".split()
bodies = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), json_values, max_size=6)
sound = st.sampled_from([CHAT, TEXT, {}])


def fuzz(server: Served, examples: int) -> None:
    """So many wrong requests: each has an answer below 500, in OpenAI's form where it is none."""
    with httpx.Client(base_url=server.url, timeout=120) as client:

        @settings(max_examples=examples)
        @given(st.sampled_from(sorted(PATHS.values())), sound, bodies, st.booleans())
        def check(path: str, start: dict[str, Any], fields: dict[str, Any], cut: bool) -> None:
            body = json.dumps({**start, **fields}).encode()
            if cut:
                body = body[: len(body) * 2 // 3]
            headers = {"content-type": "application/json"}
            answer = client.post(path, content=body, headers=headers)
            assert answer.status_code in (200, 400, 404, 429), answer.text
            if answer.status_code != 200:
                error_of(answer)

        check()
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_fuzzed_requests_are_answered(server: Served) -> None:
    fuzz(server, 120)


@pytest.mark.slow
def test_ten_thousand_fuzzed_requests_are_answered(server: Served) -> None:
    fuzz(server, 10_000)
