"""Attention from the package flashinfer-python: a plan for each batch, then one call a layer.

Source: Ye et al. 2025 (FlashInfer).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from minisgl.attention.base import Ints, Meta, Pool, Replan

_WORKSPACE: Final = 256 << 20  # bytes for the partial results of rows that are split
_TENSOR_CORES_FROM: Final = 4  # query heads a key head; below it the plain decode kernel is used


class FlashInferAttention:
    """A decode wrapper, a prefill wrapper, and a decode wrapper for each captured size.

    A plan is written to pinned memory that belongs to its wrapper and is copied from there. It is
    not written before that copy was made: with steps in flight this has long happened.
    Raises ImportError where the package is not installed, ValueError for windows.
    """

    def __init__(self, pool: Pool, windows: Sequence[int | None]) -> None:
        import flashinfer

        if any(windows):
            raise ValueError(
                "attention='flashinfer' has no sliding windows here, the model does; "
                "use attention='triton' or 'auto'"
            )
        self._make: Any = flashinfer
        self._pool, keys = pool, pool.keys[0]
        self._kv_heads, self._dim, self._dtype = keys.shape[2], keys.shape[3], keys.dtype
        self._workspace = torch.empty(_WORKSPACE, dtype=torch.uint8, device=keys.device)
        hopper = torch.cuda.get_device_capability(keys.device)[0] == 9 and self._dim == 128
        self._prefill = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
            self._workspace, "NHD", backend="fa3" if hopper else "fa2"
        )
        self._decodes: dict[bool, Any] = {}  # by whether tensor cores are used
        self._copied = torch.cuda.Event()
        self._meta: Meta | None = None
        self._run: Any = None
        self._to_flatten: tuple[Tensor, Tensor, Tensor] | None = None
        self._unplanned: Meta | None = None

    def prepare(self, meta: Meta) -> None:
        """Keep the batch; the plan needs the number of query heads, which the first layer tells."""
        self._meta, self._unplanned = meta, meta

    def capture(self, meta: Meta, heads: int) -> Replan:
        """See ``Capturable``. A replay needs a plan on the host, and its pages in one run."""
        rows, width = meta.pages.shape
        device = meta.pages.device
        first = torch.zeros(rows + 1, dtype=torch.int32, device=device)
        indices = torch.zeros(rows * width + 1, dtype=torch.int32, device=device)
        last = torch.ones(rows, dtype=torch.int32, device=device)
        wrapper = self._make.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace,
            "NHD",
            use_cuda_graph=True,
            use_tensor_cores=heads // self._kv_heads >= _TENSOR_CORES_FROM,
            paged_kv_indptr_buffer=first,
            paged_kv_indices_buffer=indices,
            paged_kv_last_page_len_buffer=last,
        )
        none = indices[:0]  # they are written by the graph

        def replan(ends: Ints) -> None:
            self._plan_decode(wrapper, ends, none, heads)

        replan(np.ones(rows, np.int64))
        self._meta, self._unplanned = meta, None
        self._run, self._to_flatten = wrapper.run, (meta.pages, first, indices)
        return replan

    def captured(self) -> None:
        """See ``Capturable``."""
        assert self._to_flatten is not None, "capture comes before"
        self._pool.kernels.flatten_pages(*self._to_flatten)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``attention.base.Attention``."""
        assert self._meta is not None, "prepare comes before attend"
        if self._unplanned is not None:
            self._plan(self._unplanned, q.shape[1])
            self._unplanned = None
        out: Tensor = self._run(q, (self._pool.keys[layer], self._pool.values[layer]))
        return out.view(len(q), -1)

    def _plan(self, meta: Meta, heads: int) -> None:
        ends = meta.starts + meta.lengths
        counts = -(-ends // self._pool.page_size)
        total = int(counts.sum())
        indices = torch.empty(total + 1, dtype=torch.int32, device=meta.pages.device)
        firsts = torch.from_numpy(_first(counts))
        on_device = firsts.to(indices.device, non_blocking=True)
        self._pool.kernels.flatten_pages(meta.pages, on_device, indices)
        if (meta.lengths == 1).all():
            tensor_cores = heads // self._kv_heads >= _TENSOR_CORES_FROM
            if tensor_cores not in self._decodes:
                self._decodes[tensor_cores] = self._make.BatchDecodeWithPagedKVCacheWrapper(
                    self._workspace, "NHD", use_tensor_cores=tensor_cores
                )
            wrapper = self._decodes[tensor_cores]
            self._plan_decode(wrapper, ends, indices[:total], heads)
            self._run = wrapper.run
            return
        self._copied.synchronize()
        self._prefill.plan(
            qo_indptr=torch.from_numpy(_first(meta.lengths)),
            paged_kv_indptr=firsts,
            paged_kv_indices=indices[:total],
            paged_kv_last_page_len=torch.from_numpy(self._last(ends)),
            num_qo_heads=heads,
            num_kv_heads=self._kv_heads,
            head_dim_qk=self._dim,
            page_size=self._pool.page_size,
            causal=True,
            q_data_type=self._dtype,
            kv_data_type=self._dtype,
        )
        self._copied.record()
        self._run = self._prefill.run

    def _plan_decode(self, wrapper: Any, ends: Ints, indices: Tensor, heads: int) -> None:
        self._copied.synchronize()
        wrapper.plan(
            indptr=torch.from_numpy(_first(-(-ends // self._pool.page_size))),
            indices=indices,
            last_page_len=torch.from_numpy(self._last(ends)),
            num_qo_heads=heads,
            num_kv_heads=self._kv_heads,
            head_dim=self._dim,
            page_size=self._pool.page_size,
            q_data_type=self._dtype,
            kv_data_type=self._dtype,
        )
        self._copied.record()

    def _last(self, ends: Ints) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Positions in each row's last page."""
        last: np.ndarray[Any, np.dtype[np.int32]] = ((ends - 1) % self._pool.page_size + 1).astype(
            np.int32
        )
        return last


def _first(counts: Ints) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Where each run begins that lies after the other, and where the last ends."""
    return np.concatenate(([0], counts.cumsum())).astype(np.int32)
