"""Chat templates are other people's programs: what they may not do, what is said when they fail."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from minisgl.tokenizer.template import ChatTemplate
from tests.tokenizer.trained import CHATML, STRICT

HELLO = [{"role": "user", "content": "hello"}]


def render(source: str, messages: Any = HELLO) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages)


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    assert render(CHATML, [{"role": "user", "content": parts}]) == render(CHATML)


def test_the_clock_can_be_given() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, lambda: datetime(2026, 2, 3))
    assert template.render(HELLO) == "03 Feb 2026"


def test_the_messages_stay_as_they_are() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}], "x": {"y": [1]}}]
    render("{% for m in messages %}{{ m.x.y[0] }}{% endfor %}", messages)
    assert messages == [
        {"role": "user", "content": [{"type": "text", "text": "a"}], "x": {"y": [1]}}
    ]


@pytest.mark.parametrize(
    ("messages", "error", "sentence"),
    [
        ("hello", TypeError, "a conversation is a list of messages, got str"),
        ({"role": "user"}, TypeError, "a list of messages, got dict"),
        ([], ValueError, "no message"),
        (["hello"], TypeError, "message 0 must be a dict with role and content, got 'hello'"),
        ([*HELLO, {"content": "x"}], TypeError, "message 1: role must be a string.*None"),
        ([{"role": "user"}], TypeError, "message 0: content must be a string.*None"),
        ([{"role": "user", "content": 5}], TypeError, "content must be a string.*5"),
        ([{"role": "user", "content": ["x"]}], TypeError, "a part must be a dict"),
        ([{"role": "user", "content": [{"type": "text"}]}], TypeError, "the text of a part"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], ValueError, "type 'image_url'"),
        ([{"role": "user", "content": "x", "tool": object()}], TypeError, "got <object"),
    ],
)
def test_a_wrong_message_is_named(messages: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        render(CHATML, messages)


def test_what_a_template_refuses_is_said_in_its_words() -> None:
    with pytest.raises(ValueError, match="refuses these messages: roles must alternate"):
        render(STRICT, [{"role": "assistant", "content": "x"}])


def test_a_template_that_fails_is_a_refusal() -> None:
    with pytest.raises(ValueError, match="refuses these messages"):
        render("{{ 1 / 0 }}")
    with pytest.raises(ValueError, match="refuses these messages"):
        render("{{ nothing.at.all }}")


def test_a_template_that_cannot_be_parsed_is_named_at_once() -> None:
    with pytest.raises(ValueError, match="cannot be parsed"):
        ChatTemplate("{% if %}", {})


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now.__globals__ }}",
        "{{ dict.__call__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 'x' %}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
        "{{ messages.append(messages[0]) }}",
        "{{ messages[0].update(role='system') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{{ 'a' * 1000000000000 }}",
        "{{ 10000000000 * 'a' }}",
        "{{ [1] * 10000000000 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ '%01000000000d' % 1 }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
    ],
)
def test_an_attack_ends_as_a_refusal_or_sees_nothing(attack: str) -> None:
    try:
        seen = render(attack)
    except ValueError as error:
        seen = ""
        assert "refuses these messages" in str(error)
    assert seen == ""


def test_a_long_conversation_is_no_attack() -> None:
    text = "word " * 200_000
    assert text in render(CHATML, [{"role": "user", "content": text}])
