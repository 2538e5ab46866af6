"""The memory of keys and values: zeros that cost nothing until they are written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minisgl.executor.kv_pool import KVPool

PAGES, PAGE_BYTES = 4096, 16 * 2 * 64 * 4  # of keys on a layer
CPU = torch.device("cpu")


def anonymous() -> int:
    """Bytes that this process has written to and that no file holds."""
    told = Path("/proc/self/smaps_rollup").read_text()
    return int(told.partition("\nAnonymous:")[2].split()[0]) * 1024


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_pages_are_zeros(dtype: torch.dtype) -> None:
    pool = KVPool(2, 3, 16, 2, 64, dtype, CPU)
    for layer in (*pool.keys, *pool.values):
        assert layer.shape == (3, 16, 2, 64) and layer.dtype == dtype
        assert torch.equal(layer, torch.zeros_like(layer))


def test_a_page_takes_its_memory_when_it_is_written_and_no_more() -> None:
    pool = KVPool(1, PAGES, 16, 2, 64, torch.float32, CPU)
    ones = torch.ones(16, 2, 64)
    before = anonymous()
    pool.keys[0][PAGES // 2] = ones
    assert anonymous() - before < 64 * PAGE_BYTES  # what the system's large pages would take: 256
