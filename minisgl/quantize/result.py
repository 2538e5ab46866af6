"""The new model folder, put together from the old one and from the layers that are done."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, Final

from safetensors import safe_open
from torch import Tensor

from minisgl.models.config import ModelConfig
from minisgl.models.weights import RECOMPUTED, weight_files
from minisgl.quantize.layer import to_half
from minisgl.quantize.work import Work, write

_FILE_BYTES: Final = 2 << 30  # of weights in one file
_WEIGHTS: Final = tuple(  # files that are not copied: weights in any form
    ".safetensors .bin .pt .pth .gguf .h5 .msgpack .onnx .index.json".split()
)


def assemble(folder: Path, out: Path, work: Work, config: ModelConfig, group: int | None) -> int:
    """Weights in files of 2 GB, all else copied, config.json last. Returns the weights' bytes."""
    where = _where(folder, work, config)
    files, sizes = [dict[str, Path]()], [0]
    for name, (path, size) in where.items():
        if sizes[-1] + size > _FILE_BYTES and files[-1]:
            files.append({})
            sizes.append(0)
        files[-1][name] = path
        sizes[-1] += size
    index = dict[str, str]()
    for number, there in enumerate(files, 1):
        file = f"model-{number:05}-of-{len(files):05}" if len(files) > 1 else "model"
        tensors = {name: _read(path, name) for name, path in there.items()}
        write(out / f"{file}.safetensors", tensors, {"format": "pt"})
        index.update(dict.fromkeys(there, f"{file}.safetensors"))
    if len(files) > 1:
        about = {"metadata": {"total_size": sum(sizes)}, "weight_map": index}
        (out / "model.safetensors.index.json").write_text(json.dumps(about, indent=2) + "\n")
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith(".") and path.name != "config.json":
            if not path.name.endswith(_WEIGHTS):
                shutil.copyfile(path, out / path.name)
    _write_config(folder, out, group)
    return sum(sizes)


def _where(folder: Path, work: Work, config: ModelConfig) -> dict[str, tuple[Path, int]]:
    """The new checkpoint's tensors: the file that each is in now, and its size in bytes then."""
    new = {name: layer for layer in work.layers for name in _shapes(layer)}
    ending = ".qweight"
    gone = {f"{name.removesuffix(ending)}.weight" for name in new if name.endswith(ending)}
    gone |= {"lm_head.weight"} if config.tied else set()
    where = dict[str, tuple[Path, int]]()
    for file in (*weight_files(folder), *work.layers):
        for name, shape in _shapes(file).items():
            path = new.get(name, file)
            if name not in gone and not name.endswith(RECOMPUTED):
                each = 4 if name.endswith((".qweight", ".qzeros")) else 2
                where[name] = path, each * math.prod(shape)
    return where


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, "pt") as file:
        names: list[str] = list(file.keys())
        return {name: tuple(file.get_slice(name).get_shape()) for name in names}


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(name)
    return to_half(name, tensor) if tensor.is_floating_point() else tensor


def _write_config(folder: Path, out: Path, group: int | None) -> None:
    values: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for name in {"dtype", "torch_dtype"} & set(values) or {"torch_dtype"}:
        values[name] = "float16"
    values["quantization_config"] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group or -1,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    part = out / "config.json.part"
    part.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, out / "config.json")
