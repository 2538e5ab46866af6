"""What tests on a GPU share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def strict() -> Iterator[None]:
    """A test may make torch strict about waiting for the device; the next is not."""
    yield
    torch.cuda.set_sync_debug_mode("default")
