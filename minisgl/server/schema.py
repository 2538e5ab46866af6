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

_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def completed(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's document with the kinds of body, and with the one form that every error has."""
    kinds = msgspec.json.schema_components(_KINDS, ref_template="#/components/schemas/{name}")[1]
    document.setdefault("components", {})["schemas"] = {**kinds, "Error": _ERROR}
    told = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # what FastAPI says of bodies that it checks
            for statuses, says in (("4XX", "It was refused."), ("5XX", "It failed.")):
                operation["responses"][statuses] = {"description": says, "content": told}
    return document


def body_of(kind: type[Strict], streams: bool = False) -> dict[str, Any]:
    """What an endpoint that reads this kind of body adds to its description.

    streams: it may answer with a stream of events.
    """
    assert kind in _KINDS, "it would be described nowhere"
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    content = {"application/json": {"schema": schema}}
    told: dict[str, Any] = {"requestBody": {"required": True, "content": content}}
    if streams:
        told["responses"] = {"200": {"content": {"text/event-stream": {}}}}
    return told
