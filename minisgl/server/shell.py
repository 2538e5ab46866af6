"""A conversation in a terminal; the engine runs in this process."""

from __future__ import annotations

from collections.abc import Mapping

from minisgl.config import EngineConfig


def run(model: str, config: EngineConfig, environment: Mapping[str, str]) -> int:
    """Talk until the end of input; returns the exit code."""
    raise NotImplementedError
