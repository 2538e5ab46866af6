"""One server and one offline model for all tests of the API; tests that harm a server start one."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from minisgl.llm import LLM
from tests.server.served import Served


@pytest.fixture(scope="session")
def server() -> Iterator[Served]:
    with Served("--check-idle") as served:
        yield served


@pytest.fixture(scope="session")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="session")
def offline() -> Iterator[LLM]:
    """The same model, which says what every answer must be."""
    with LLM("tiny", overlap=False, prefix_cache="naive", threads=1) as llm:
        yield llm
