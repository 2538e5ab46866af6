"""What happens between a batch's numbers and the pages, in torch: on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from minisgl.kernel.base import DecodeInputs, DecodeTables, Place


def store_kv(k: Tensor, v: Tensor, to: Place) -> None:
    """Write k, v: (tokens, kv_heads, head_dim) to where they belong."""
    to.keys.index_copy_(0, to.locations, k)
    to.values.index_copy_(0, to.locations, v)


def split(qkv: Tensor, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values: (tokens, their heads, head_dim) each, in qkv's memory."""
    heads = qkv.shape[1] - 2 * kv_heads
    q, k, v = qkv.split_with_sizes((heads, kv_heads, kv_heads), 1)
    return q, k, v


def decode_inputs(packed: Tensor, tables: DecodeTables, into: DecodeInputs) -> None:
    """See ``Kernels``. Every shape is known beforehand, so nothing waits for the device."""
    slots, positions, given, entries, pages = packed.view(5, -1)
    flat, size = tables.pages.view(-1), tables.page_size
    own = slots * tables.pages.shape[1]  # rows that write nothing write what is there already
    entry = torch.where(entries >= 0, entries, own)
    flat[entry] = torch.where(entries >= 0, pages.int(), flat[own])
    into.ids.copy_(torch.where(given >= 0, given, tables.last[slots]))
    into.positions.copy_(positions)
    into.ends.copy_(positions + 1)
    into.pages.copy_(tables.pages[slots])
    page = into.pages.gather(1, (positions // size)[:, None]).squeeze(1)
    into.locations.copy_(page.long() * size + positions % size)


def flatten_pages(pages: Tensor, first: Tensor, out: Tensor) -> None:
    """See ``Kernels``. What is past a row's end goes to the last place of ``out``."""
    column = torch.arange(pages.shape[1], device=pages.device)
    begin, count = first[:-1, None], (first[1:] - first[:-1])[:, None]
    place = torch.where(column < count, begin + column, len(out) - 1)
    out[place] = pages


def choose_greedy(logits: Tensor, slots: Tensor, last: Tensor) -> Tensor:
    """See ``Kernels``."""
    tokens = logits.argmax(-1)
    last.index_copy_(0, slots, tokens)
    return tokens
