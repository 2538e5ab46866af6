"""Safetensors checkpoints, copied piece by piece straight into the memory that keeps them.

A file is mapped, not read: the pages touched count as this process's memory until the mapping
goes. So a mapping is given up after every 16 MB, and large tensors are copied a few rows at a
time. Peak memory is then the size of this rank's part plus about 20 MB: 1.10 times a 207 MB float32
checkpoint on one rank, 1.23 times its half on one of two (Linux, 2 cores, torch 2.13, safetensors
0.8; tests/models/test_weights.py measures it).
"""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minisgl.kernel.base import Kernels, Matrix
from minisgl.kernel.int4 import Int4, dequantise
from minisgl.kernel.plain import PlainKernels
from minisgl.layers.quantization.base import Quantization
from minisgl.layers.quantization.stored import stored
from minisgl.layers.source import Part
from minisgl.models.packing import Packing

_MAPPED_BYTES: Final = 16 << 20  # read from one mapping before it is given up
_QUIET_BYTES: Final = 1 << 30  # smaller checkpoints load without a progress bar
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
RECOMPUTED: Final = (
    "rotary_emb.inv_freq",
)  # old checkpoints store what every model computes itself


class Weights:
    """The tensors of a model folder, as a ``layers.source.Source``. Use with ``with``.

    Leaving the block without an error warns once of the weights that nothing read.
    Raises FileNotFoundError for a folder or shard that is not there, ValueError for a damaged file.
    """

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels | None = None,
        quantization: Quantization = stored,
        packing: Packing | None = None,
        progress: bool = True,
    ) -> None:
        """kernels: what the layers compute with; None: torch. packing: of the matrices there.
        progress: show it where there is much to read."""
        self.dtype, self.device = dtype, device
        self.kernels: Kernels = kernels or PlainKernels()
        self._quantization, self._packing = quantization, packing
        self._where = {name: file for file in weight_files(folder) for name in _File(file).names()}
        self._folder, self._open = folder, dict[Path, _File]()
        self._unread = {name for name in self._where if not name.endswith(RECOMPUTED)}
        size = sum(file.stat().st_size for file in set(self._where.values()))
        self._progress = _progress_bar(size) if progress and size >= _QUIET_BYTES else None

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.close()
        self._open.clear()
        if error is None and self._unread:
            first = ", ".join(sorted(self._unread)[:5])
            more = f" and {len(self._unread) - 5} more" if len(self._unread) > 5 else ""
            warnings.warn(
                f"{self._folder}: the model does not use {len(self._unread)} of its "
                f"{len(self._where)} weights: {first}{more}",
                stacklevel=2,
            )

    def empty(self, *shape: int) -> Tensor:
        """Uninitialised memory of the model's dtype, on its device. The caller owns it."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def matrix(self, weight: Tensor, bias: Tensor | None = None, *, rows: bool = False) -> Matrix:
        """Take over a filled weight (outputs, inputs), to multiply with; rows: or to look up."""
        return self._quantization(self.kernels, weight, bias, rows=rows)

    def linear(
        self, parts: Sequence[Part], inputs: int, columns: range, bias: Tensor | None = None
    ) -> Matrix:
        """See ``layers.source.Source``. Packed parts among others are unpacked: that is exact, and
        takes the memory of the others."""
        packed = [part for part in parts if self._is_packed(part.name)]
        if len(packed) == len(parts):
            return self._quantization(
                self.kernels, self._int4(parts, inputs, columns), bias, rows=False
            )
        weight, begin = self.empty(sum(len(part.rows) for part in parts), len(columns)), 0
        for part in parts:
            own = weight[begin : begin + len(part.rows)]
            if part in packed:
                own.copy_(dequantise(self._int4([part], inputs, columns)))
            else:
                at = (part.rows.start, columns.start)
                self.fill(own, f"{part.name}.weight", (part.total, inputs), at)
            begin += len(own)
        return self.matrix(weight, bias)

    def _is_packed(self, name: str) -> bool:
        """The files decide: what config.json leaves unpacked by name has a weight there."""
        return self._packing is not None and f"{name}.weight" not in self._where

    def _int4(self, parts: Sequence[Part], inputs: int, columns: range) -> Int4:
        assert self._packing is not None
        return self._packing.matrix(self.fill, parts, inputs, columns, self.dtype, self.device)

    def ignore(self, name: str) -> None:
        """Do not warn when nothing reads this weight."""
        self._unread.discard(name)

    def fill(
        self, into: Tensor, name: str, shape: tuple[int, ...], at: tuple[int, ...] | None = None
    ) -> None:
        """Copy the box of into's shape that begins at ``at`` (None: zeros) in the tensor ``name``.

        Converts to into's dtype and device, but never between integers and others. Reads only the
        box. shape: what the whole stored tensor must measure.
        Raises ValueError if the tensor is missing, measures or is something else.
        """
        if name not in self._where:
            raise ValueError(self._missing(name))
        path = self._where[name]
        file = self._open.setdefault(path, _File(path))
        there = file.shape(name)
        if there != shape:
            raise ValueError(
                f"{path}: {name} should measure {shape}, config.json says; it is {there}"
            )
        if ("F" in file.dtype(name)) != into.is_floating_point():
            wants = "floating point" if into.is_floating_point() else "integers"
            raise ValueError(f"{path}: {name} should hold {wants}; it holds {file.dtype(name)}")
        corner = at if at is not None else (0,) * into.dim()
        rest = tuple(
            slice(begin, begin + size)
            for begin, size in zip(corner[1:], into.shape[1:], strict=True)
        )
        row_bytes = max(1, into[:1].numel() * 4)
        step = max(1, _MAPPED_BYTES // 2 // row_bytes)
        for begin in range(0, len(into), step):
            end = min(begin + step, len(into))
            rows = slice(corner[0] + begin, corner[0] + end)
            touched = file.copy(into[begin:end], name, (rows, *rest))
            if self._progress is not None:
                self._progress.update(touched)
        self._unread.discard(name)

    def _missing(self, name: str) -> str:
        files = sorted({path.name for path in self._where.values()})
        listed = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        stem = name.removesuffix(".weight")
        if self._packing is None and f"{stem}.qweight" in self._where:
            return (
                f"{self._folder}: {stem} is packed, and neither config.json (quantization_config) "
                f"nor quant_config.json says how"
            )
        near = difflib.get_close_matches(name, self._where, 3, cutoff=0.7)
        like = f"; near it: {', '.join(near)}" if near else ""
        return f"{self._folder}: no weight {name} in {listed}{like}"


class _File:
    """One safetensors file, mapped anew whenever enough of it has been touched."""

    def __init__(self, path: Path) -> None:
        self._path, self._touched = path, 0
        self._map: Any = None

    def names(self) -> Iterable[str]:
        """The tensors in it."""
        return list(self._mapped().keys())

    def shape(self, name: str) -> tuple[int, ...]:
        """What a tensor measures."""
        return tuple(self._mapped().get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """What a tensor's numbers are, as safetensors calls it: F16, I32."""
        dtype: str = self._mapped().get_slice(name).get_dtype()
        return dtype

    def copy(self, into: Tensor, name: str, box: tuple[slice, ...]) -> int:
        """Copy a box of a tensor; how many bytes that touched."""
        part = self._mapped().get_slice(name)[box]
        into.copy_(part)
        touched: int = part.numel() * part.element_size()
        del part  # it looks into the mapping, which must be free to go
        self._touched += touched
        if self._touched >= _MAPPED_BYTES:
            self._map, self._touched = None, 0
        return touched

    def _mapped(self) -> Any:
        if self._map is None:
            try:
                self._map = safe_open(self._path, "pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{self._path} is not a whole safetensors file ({error}); download it again"
                ) from None
        return self._map


def _progress_bar(size: int) -> Any:
    from huggingface_hub.utils.tqdm import tqdm  # obeys the hub's switch for quiet terminals

    make: Any = tqdm  # it has no types
    return make(total=size, unit="B", unit_scale=True, desc="weights")


def weight_files(folder: Path) -> list[Path]:
    """The checkpoint's safetensors files: the single one, else those that the index names.

    Raises FileNotFoundError, saying what to do, if there are none or one is missing; ValueError
    for an index that is damaged or names a file outside the folder.
    """
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not (folder / _INDEX).is_file():
        pickled = [path.name for path in sorted(folder.glob("*.bin"))]
        way_out = (
            f"{', '.join(pickled)} is a pickle, which can run code and is not read; convert it "
            f"with transformers: from_pretrained(...).save_pretrained(..., safe_serialization=True)"
            if pickled
            else "a model folder holds config.json and safetensors files"
        )
        raise FileNotFoundError(f"{folder} has neither {_SINGLE} nor {_INDEX}: {way_out}")
    names = _index(folder / _INDEX)
    for name in names:
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(f"{folder / _INDEX} names {name!r}, which is no file of this folder")
        if not (folder / name).is_file():
            there = sum((folder / other).is_file() for other in names)
            raise FileNotFoundError(
                f"{folder} has no {name}, {there} of the {len(names)} files that {_INDEX} names "
                f"are there; download it again"
            )
    return [folder / name for name in names]


def _index(path: Path) -> list[str]:
    try:
        files = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is damaged: it must map weight names to files") from None
    if not all(isinstance(file, str) for file in files):
        raise ValueError(f"{path} is damaged: it must map weight names to files")
    return sorted(files)
