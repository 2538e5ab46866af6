"""What OpenAPI's document says of the server is so, as schemathesis sees it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import checks

from tests.server.served import Served

_CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
# they answer for ever, or say what one key alone may ask
_LEFT_OUT = ("/watch", "/admin/")


def examine(server: Served, examples: int) -> list[str]:
    """Ask so often at every endpoint; returns their names."""
    schema: Any = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    examined = []
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path.startswith(_LEFT_OUT):
            continue
        examined.append(f"{operation.method.upper()} {operation.path}")

        @settings(max_examples=examples, suppress_health_check=list(HealthCheck), deadline=None)
        @given(operation.as_strategy())
        def check(case: Any) -> None:
            if isinstance(case.body, dict):  # or a single answer may take the whole context
                case.body |= {"max_tokens": 3} if "prompt" in case.body or "n" in case.body else {}
            case.call_and_validate(checks=_CHECKS, timeout=60)

        check()
    return examined


def test_the_document_tells_the_truth(server: Served) -> None:
    assert len(examine(server, 8)) == 8


@pytest.mark.slow
def test_the_document_tells_the_truth_of_many_requests(server: Served) -> None:
    examine(server, 500)


def test_the_document_names_every_field_and_no_status_422(server: Served) -> None:
    told = httpx.get(f"{server.url}/openapi.json").json()
    assert "422" not in str({path: list(ops) for path, ops in told["paths"].items()})
    kinds = told["components"]["schemas"]
    assert {"messages", "temperature", "logit_bias"} <= kinds["ChatRequest"]["properties"].keys()
    assert kinds["CompletionRequest"]["required"] == ["prompt"]
    assert kinds["ChatRequest"]["additionalProperties"] is False
    body = told["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"]["$ref"].endswith("/ChatRequest")
    for operations in told["paths"].values():
        for operation in operations.values():
            assert {"4XX", "5XX"} <= operation["responses"].keys()
            assert "422" not in operation["responses"]
