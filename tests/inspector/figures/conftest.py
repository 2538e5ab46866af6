"""The run that most figures are drawn of."""

from __future__ import annotations

import pytest

from minisgl.trace import Trace
from tests.inspector.drawn import stressed


@pytest.fixture(scope="package")
def trace() -> Trace:
    """Reuse, chunks, waiting, eviction, preemption, dropped rows, aborts."""
    return stressed().trace
