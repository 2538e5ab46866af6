"""AWQ checkpoints written and read by the format's description alone, with nothing of minisgl's.

A word of a row holds eight neighbouring outputs, four bits each from the lowest on, in the order 0,
2, 4, 6, 1, 3, 5, 7. qweight: (inputs, outputs / 8); qzeros: (groups, outputs / 8); scales: (groups,
outputs). A weight is (code - zero) * scale.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Array = NDArray[Any]


def pack(codes: Array) -> Array:
    """(n, outputs) of 0 to 15 to (n, outputs / 8) int32."""
    words = np.zeros((len(codes), codes.shape[1] // 8), np.uint32)
    for column in range(words.shape[1]):
        for i, output in enumerate(ORDER):
            words[:, column] |= codes[:, 8 * column + output].astype(np.uint32) << np.uint32(4 * i)
    return words.view(np.int32)


def unpack(words: Array) -> Array:
    """What ``pack`` packed."""
    codes = np.zeros((len(words), words.shape[1] * 8), np.int64)
    for column in range(words.shape[1]):
        for i, output in enumerate(ORDER):
            nibble = words.view(np.uint32)[:, column] >> np.uint32(4 * i) & np.uint32(15)
            codes[:, 8 * column + output] = nibble
    return codes


def weight(qweight: Array, qzeros: Array, scales: Array) -> Array:
    """(outputs, inputs) float32."""
    group = len(qweight) // len(scales)
    zeros, each = (np.repeat(x, group, 0) for x in (unpack(qzeros), scales.astype(np.float32)))
    out: Array = ((unpack(qweight) - zeros).astype(np.float32) * each).T.copy()
    return out


def round_to_four_bits(dense: Array, group: int) -> tuple[Array, Array, Array]:
    """qweight, qzeros and scales of a weight (outputs, inputs), plainly rounded."""
    groups = dense.reshape(len(dense), -1, group)
    low, high = groups.min(2).clip(max=0), groups.max(2).clip(min=0)
    scales = ((high - low) / 15).astype(np.float16)
    zeros = np.rint(-low / scales.astype(np.float32)).clip(0, 15)
    codes = (np.rint(groups / scales[..., None].astype(np.float32)) + zeros[..., None]).clip(0, 15)
    return pack(codes.reshape(len(dense), -1).T), pack(zeros.T), scales.T.copy()


def unpacked(folder: Path) -> dict[str, Array]:
    """A folder's tensors, packed ones as the weights that they stand for."""
    there: dict[str, Array] = {}
    for path in folder.glob("*.safetensors"):
        there |= load_file(path)
    out = {name: x for name, x in there.items() if name.endswith((".weight", ".bias"))}
    for stem in [name.removesuffix(".scales") for name in there if name.endswith(".scales")]:
        parts = (there[f"{stem}.{part}"] for part in ("qweight", "qzeros", "scales"))
        out[f"{stem}.weight"] = weight(*parts)
    return out


def write(
    dense: Path,
    out: Path,
    group: int,
    says: Mapping[str, Any],
    file: str = "config.json",
    dense_modules: Sequence[str] = (),
) -> tuple[Path, Path]:
    """The model in ``dense`` packed, and beside it a twin that holds the very same weights dense.

    group: -1 for all inputs. says: the fields that describe the packing, in ``file``.
    dense_modules: parts of the names of matrices that are not packed.
    """
    packed, twin = out / "packed", out / "twin"
    for folder in (packed, twin):
        shutil.copytree(dense, folder)
    tensors: dict[str, Array] = {}
    for name, tensor in load_file(dense / "model.safetensors").items():
        stem = name.removesuffix(".weight")
        if not stem.endswith("_proj") or any(part in stem for part in dense_modules):
            tensors[name] = tensor
            continue
        parts = round_to_four_bits(tensor, tensor.shape[1] if group < 0 else group)
        for part, array in zip(("qweight", "qzeros", "scales"), parts, strict=True):
            tensors[f"{stem}.{part}"] = array
    save_file(tensors, packed / "model.safetensors")
    config = json.loads((dense / "config.json").read_text())
    if file == "config.json":
        config["quantization_config"] = says
    else:
        (packed / file).write_text(json.dumps(says))
    (packed / "config.json").write_text(json.dumps(config))
    save_file(unpacked(packed), twin / "model.safetensors")
    return packed, twin
