"""What every attention backend is given, and what it answers.

The KV pool's layout is (num_pages, page_size, kv_heads, head_dim) for keys and for values, on each
layer; "NHD" in FlashInfer. Source: Kwon et al. 2023 (PagedAttention), sec. 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minisgl.kernel.base import Kernels, Place, TokenMemory

Ints = NDArray[np.int64]


class Meta(NamedTuple):
    """Where the rows of one batch read and write. Tokens lie row after row, in batch order."""

    starts: Ints  # (rows,) on the host: the first new position of each row
    lengths: Ints  # (rows,) on the host: how many new positions
    pages: Tensor  # (rows, n) int32: entry j holds a row's positions from j * page_size on;
    # past a row's last page it names any page
    locations: Tensor  # (tokens,) int64: page * page_size + offset of each new position
    device: DeviceMeta | None = None  # the same numbers for kernels that read them on a GPU

    def token(self, pools: Tensor | None, page_size: int) -> TokenMemory | None:
        """What a kernel that computes all layers of one token reads; None for other batches.

        pools: each layer's keys and values, see ``TokenMemory``; None: there is no such kernel.
        """
        if pools is None or self.device is None or len(self.locations) != 1:
            return None
        return TokenMemory(pools, self.pages, self.device.ends, page_size)


class DeviceMeta(NamedTuple):
    """Lengths on the device. Rows may follow that pad the batch; the host's arrays lack those."""

    ends: Tensor  # (rows,) int32: how many positions each row has once the batch is computed
    first: Tensor  # (rows + 1,) int32: each row's first token, then the number of tokens


def device_meta(meta: Meta) -> DeviceMeta:
    """The device's numbers of a batch, sent there now if they are not there yet."""
    if meta.device is not None:
        return meta.device
    first = np.concatenate(([0], meta.lengths.cumsum()))
    ends, begins = (
        torch.from_numpy(x.astype(np.int32)) for x in (meta.starts + meta.lengths, first)
    )
    return DeviceMeta(ends.to(meta.pages.device), begins.to(meta.pages.device))


class Pool(Protocol):
    """The KV pages as an attention backend uses them."""

    page_size: int
    keys: list[Tensor]  # per layer (num_pages, page_size, kv_heads, head_dim)
    values: list[Tensor]
    kernels: Kernels

    def place(self, layer: int, locations: Tensor) -> Place:
        """Where keys and values of tokens at flat positions ``locations`` go."""
        ...


class Attention(Protocol):
    """Built once per runner as ``Backend(pool, windows)``; used by one thread.

    windows: per layer, how many of the newest positions a token sees, itself included; None: all.
    An empty sequence: None for every layer.
    """

    def __init__(self, pool: Pool, windows: Sequence[int | None]) -> None: ...

    def prepare(self, meta: Meta) -> None:
        """Get ready for one batch: all that does not depend on the layer."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend q over the pages of each row of the prepared batch, which hold k and v already.

        q: (tokens, heads, head_dim); k, v: (tokens, kv_heads, head_dim). A token sees the positions
        of its own row up to its own. Scores are scaled by head_dim ** -0.5.
        Returns (tokens, heads * head_dim), which the caller owns.
        """
        ...


class Paged(NamedTuple):
    """One batch's memory, as a model wants it: the pool's pages, read by an attention backend."""

    pool: Pool
    attention: Attention
    locations: Tensor  # (tokens,) int64: where each new position goes
    token: TokenMemory | None = None  # the same for a kernel that computes all layers of a token

    def place(self, layer: int) -> Place:
        """Where the batch's keys and values belong."""
        return self.pool.place(layer, self.locations)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``Attention``."""
        return self.attention.attend(layer, q, k, v)


Replan = Callable[[Ints], None]


def no_plan(ends: Ints) -> None:
    """A ``Replan`` of kernels that read all lengths on the device."""


def equal_shares(most: int, rows: int) -> int:
    """Into how many shares to cut the keys of all rows: as many as fit, or a few less, so that rows
    of the same length are not cut across.
    """
    even = most - most % rows
    return even if even >= 0.9 * most else most


class Capturable(Attention, Protocol):
    """A backend whose ``attend`` can be captured in a CUDA graph, for rows of one new position."""

    def capture(self, meta: Meta, heads: int) -> Replan:
        """Get ready for ``attend`` calls that are captured: instead of ``prepare``.

        meta: its device tensors are those of every replay, refilled before each; the pages are
        as wide as a sequence can get. heads: query heads. Returns what must be called before each
        replay with the rows' ends, (rows,) on the host; it launches nothing that a replay repeats.
        """
        ...

    def captured(self) -> None:
        """What depends on ``ends`` and ``pages`` and not on the layer: the first captured call."""
        ...
