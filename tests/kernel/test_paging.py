"""What is laid out for a decode step, against the same by hand; the CUDA twins: tests/gpu."""

from __future__ import annotations

import torch

from minisgl.kernel import paging
from minisgl.kernel.base import DecodeInputs, DecodeTables, Place


def test_a_decode_step_is_laid_out_from_the_tables_it_updates() -> None:
    pages = torch.tensor([[7, 0, 0], [4, 5, 0], [2, 3, 0], [9, 9, 9]], dtype=torch.int32)
    tables = DecodeTables(pages, torch.tensor([70, 71, 72, 73]), 4)
    # slot 1 continues in its second page, slot 2 gets a third, slot 0 is told its token, padding
    packed = torch.tensor(
        [[1, 2, 0, 3], [6, 8, 3, 0], [-1, -1, 55, 0], [-1, 2 * 3 + 2, -1, -1], [0, 8, 0, 0]]
    )
    wide = torch.zeros(3, 4, dtype=torch.int64)
    into = DecodeInputs(
        wide[0], wide[1], wide[2], torch.zeros(4).int(), torch.zeros(4, 3, dtype=torch.int32)
    )
    paging.decode_inputs(packed.ravel(), tables, into)
    assert into.ids.tolist() == [71, 72, 55, 0]
    assert into.positions.tolist() == [6, 8, 3, 0]
    assert into.ends.tolist() == [7, 9, 4, 1]
    assert into.locations.tolist() == [5 * 4 + 2, 8 * 4, 7 * 4 + 3, 9 * 4]
    assert into.pages.tolist() == [[4, 5, 0], [2, 3, 8], [7, 0, 0], [9, 9, 9]]
    assert pages.tolist() == [[7, 0, 0], [4, 5, 0], [2, 3, 8], [9, 9, 9]]


def test_pages_of_rows_are_written_one_after_the_other() -> None:
    pages = torch.tensor([[1, 2, 3], [4, 0, 0], [5, 6, 0]], dtype=torch.int32)
    first, out = torch.tensor([0, 3, 4, 6], dtype=torch.int32), torch.full((7,), -1).int()
    paging.flatten_pages(pages, first, out)
    assert out[:6].tolist() == [1, 2, 3, 4, 5, 6]


def test_keys_and_values_are_stored_where_they_belong() -> None:
    k, v = torch.randn(2, 3, 2, 4)
    keys, values = torch.zeros(2, 10, 2, 4)
    paging.store_kv(k, v, Place(keys, values, torch.tensor([7, 0, 3])))
    assert torch.equal(keys[[7, 0, 3]], k) and torch.equal(values[[7, 0, 3]], v)
    assert keys.count_nonzero() == k.count_nonzero()
