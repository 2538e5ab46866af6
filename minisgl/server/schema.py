"""The bodies of requests in OpenAPI's words: they are checked here, not by FastAPI."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from minisgl.server.fields import (
    AbortRequest,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    RecordRequest,
    StepRequest,
    Strict,
    TokenizeRequest,
)

_KINDS: Final[tuple[type[Strict], ...]] = (
    AbortRequest,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    RecordRequest,
    StepRequest,
    TokenizeRequest,
)


def components() -> dict[str, Any]:
    """The JSON Schema of every kind of body, by name."""
    return msgspec.json.schema_components(_KINDS, ref_template="#/components/schemas/{name}")[1]


def body_of(kind: type[Strict]) -> dict[str, Any]:
    """What an endpoint that reads this kind of body adds to its description."""
    assert kind in _KINDS, "it would be described nowhere"
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}
