"""A model's chat template: Jinja text that somebody else wrote, so it runs in a sandbox.

It sees plain strings, numbers, lists and dicts and nothing of this process; what it can write is
bounded. A template that loops for ever without writing is not stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_EXTRA_CHARACTERS: Final = 1_000_000  # a template may add this many to what it is given,
_GROWTH: Final = 4  # ... and repeat what it is given this often
_LARGEST_PRODUCT: Final = 1_000_000


class ChatTemplate:
    """Turns a conversation into the text a model was trained to continue. Immutable.

    source: the Jinja text. special: the tokenizer's named special tokens, such as "bos_token",
    which templates read. now: the clock behind ``strftime_now``.
    Raises ValueError if source cannot be parsed.
    """

    def __init__(
        self,
        source: str,
        special: Mapping[str, str | list[str]],
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.source, self._special = source, dict(special)
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(
            raise_exception=_raise,
            strftime_now=lambda form: now().strftime(str(form)),
            dict=lambda *args, **kwargs: dict(*args, **kwargs),
            namespace=_Namespace,
        )
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ValueError(f"the chat template cannot be parsed: {error}") from error

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The conversation's text, ending where the assistant is to go on.

        messages: dicts with "role" and "content", the content a string or a list of text parts,
        which are joined. Raises TypeError or ValueError that says which message is wrong, or why
        the template refuses them.
        """
        checked = check_messages(messages)
        room = _EXTRA_CHARACTERS + _GROWTH * sum(len(str(message)) for message in checked)
        variables = {"messages": checked, "tools": None, "documents": None, **self._special}
        pieces = []
        try:
            for piece in self._template.generate(add_generation_prompt=True, **variables):
                pieces.append(piece)
                room -= len(piece)
                if room < 0:
                    raise SecurityError("it writes far more than it was given")
        except Exception as error:  # a template fails in any way that Python can
            raise ValueError(f"the chat template refuses these messages: {error}") from error
        return "".join(pieces)


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as plain data, copied; the text parts of a content are joined to a string.

    Raises TypeError or ValueError that says which message is wrong.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise TypeError(f"a conversation is a list of messages, got {type(messages).__name__}")
    if not messages:
        raise ValueError("the conversation has no message; a template needs at least one")
    return [_check_message(index, message) for index, message in enumerate(messages)]


def _check_message(index: int, message: Mapping[str, Any]) -> dict[str, Any]:
    where = f"message {index}"
    if not isinstance(message, Mapping):
        raise TypeError(f"{where} must be a dict with role and content, got {message!r:.80}")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise TypeError(f"{where}: role must be a string such as 'user', got {role!r:.80}")
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        content = "".join(_text_part(where, part) for part in content)
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise TypeError(f"{where}: content must be a string or text parts, got {content!r:.80}")
    rest = {key: _plain(value) for key, value in message.items() if isinstance(key, str)}
    return {**rest, "role": str(role), "content": content}


def _text_part(where: str, part: Any) -> str:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise TypeError(f"{where}: a part must be a dict with a type, got {part!r:.80}")
    if part["type"] != "text":
        raise ValueError(f"{where} has a part of type {part['type']!r}; only text can be read")
    if not isinstance(part.get("text"), str):
        raise TypeError(f"{where}: the text of a part must be a string, got {part!r:.80}")
    return str(part["text"])


def _plain(value: Any) -> Any:
    """JSON data, rebuilt: an object's methods would be doors out of the sandbox."""
    match value:
        case None | bool():
            return value
        case str():
            return str.__str__(value)
        case int():
            return int.__int__(value)
        case float():
            return float.__float__(value)
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    raise TypeError(f"a message holds strings, numbers, lists and dicts, got {value!r:.80}")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's own sandbox, with products bounded: ``'a' * 10**12`` would take all memory."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """``left operator right``, refused where the result could be huge."""
        if operator == "%" and not isinstance(left, int | float):
            raise SecurityError("the operator % formats numbers only here")
        if operator == "**" and not (_small(left, 1_000_000) and _small(right, 64)):
            raise SecurityError(f"{left!r:.20} ** {right!r:.20} is too large")
        if operator == "*":
            size = (_weight(left) or 1) * (_weight(right) or 1)
            if size > _LARGEST_PRODUCT and not (_is_number(left) and _is_number(right)):
                raise SecurityError(f"a product of {size} characters or items is too large")
        return super().call_binop(context, operator, left, right)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _small(value: Any, most: int) -> bool:
    return _is_number(value) and abs(value) <= most


def _weight(value: Any) -> int:
    return abs(int(value)) if _is_number(value) else len(value)


class _Namespace(Namespace):
    """What ``namespace()`` makes in a template; names with underscores lead to Python's inside."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        for name in dict(*args, **kwargs):
            _refuse_private(name)
        super().__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace holds no name that begins with an underscore: {name!r}")


class _Generation(Extension):
    """``{% generation %}...{% endgeneration %}`` marks training text; here it says nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements between the tags, as if the tags were not there."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes <, > and & for HTML; models were trained on plain JSON
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
