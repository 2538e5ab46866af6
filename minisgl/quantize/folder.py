"""A model folder to four bits, layer by layer: one layer is in memory at a time, and what is done
is kept, so that a run that was stopped goes on where it was.

Until the last moment the new folder has no config.json, and so is no model. Text is not known here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from minisgl.kernel.int4 import PER_WORD
from minisgl.models.config import ModelConfig
from minisgl.models.weights import Weights, weight_files
from minisgl.quantize.fitting import MatrixError
from minisgl.quantize.layer import LayerBench
from minisgl.quantize.result import assemble
from minisgl.quantize.work import Work


class Quantised(NamedTuple):
    """What ``quantise`` made."""

    folder: Path
    num_bytes: int  # of weights
    errors: list[MatrixError]  # of every matrix, in the model's order


def quantise(folder: Path, out: Path, calibration: Tensor, group: int | None = 128) -> Quantised:
    """Write the model in ``folder`` to ``out`` with its layers' matrices in AWQ's four bits.

    calibration: (sequences, length) token ids of the kind of text that the model is for. group:
    inputs that share a scale; None: all that an output reads. Embedding, output head, norms and
    biases are written as float16. Shows a progress bar on a terminal. Interrupted, the same call
    goes on with the next layer.
    Raises ValueError, with the numbers, for a model or a text that cannot be used, and
    FileExistsError if ``out`` holds anything else than this very work unfinished.
    """
    config, errors = ModelConfig.read(folder), list[MatrixError]()
    fitted = fit(folder, out, calibration, group)
    for some in tqdm(fitted, "quantize", config.num_layers, unit="layer", disable=None):
        errors += some
    work = Work(out, _key(folder, calibration, group))
    num_bytes = assemble(folder, out, work, config, group)
    work.finish()
    return Quantised(out, num_bytes, errors)


def fit(
    folder: Path, out: Path, calibration: Tensor, group: int | None
) -> Iterator[list[MatrixError]]:
    """Each layer's errors, once it is done and on disk; the arguments are those of ``quantise``."""
    config = ModelConfig.read(folder)
    _check(folder, config, calibration, group)
    work = Work(out, _key(folder, calibration, group))
    for index in range(work.num_done):
        yield work.errors(index)
    for layer, hidden in layers(folder, calibration, work.num_done, work.hidden()):
        result = layer.quantise(group)
        work.keep(layer.index, result.tensors, result.errors, hidden)
        yield result.errors


def layers(
    folder: Path, calibration: Tensor, first: int = 0, hidden: Tensor | None = None
) -> Iterator[tuple[LayerBench, Tensor]]:
    """Each layer that has seen its inputs for this text, and the hidden states after it.

    first: the layer to begin with, and ``hidden`` what comes in there. One layer is in memory at a
    time, if the caller keeps none; the hidden states are changed when the next one is asked for.
    """
    config = ModelConfig.read(folder)
    weights = Weights(folder, torch.float32, torch.device("cpu"), progress=False)
    if hidden is None:
        shape = config.vocab_size, config.hidden_size
        embedding = weights.empty(*shape)
        weights.fill(embedding, "model.embed_tokens.weight", shape)
        hidden = embedding[calibration]
        del embedding
    for index in range(first, config.num_layers):
        layer = LayerBench(weights, config, index, calibration.numel())
        layer.run(hidden)
        yield layer, hidden


def _check(folder: Path, config: ModelConfig, calibration: Tensor, group: int | None) -> None:
    if config.packing is not None:
        raise ValueError(f"{folder} is packed in four bits already")
    if calibration.dim() != 2 or not 1 < calibration.shape[1] <= config.context:
        raise ValueError(
            f"the calibration text must be sequences of 2 to {config.context} tokens; it measures "
            f"{tuple(calibration.shape)}"
        )
    if int(calibration.min()) < 0 or int(calibration.max()) >= config.vocab_size:
        raise ValueError(
            f"the calibration text has tokens {int(calibration.min())} to "
            f"{int(calibration.max())}; the model knows 0 to {config.vocab_size - 1}"
        )
    heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    sizes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads * head_dim": heads,
    }
    for name, size in sizes.items():
        if group is not None and size % group:
            raise ValueError(
                f"{folder}: {name} is {size}, no whole groups of {group}; give another "
                f"group size: 128, 64 or 32"
            )
    for name, size in {**sizes, "num_key_value_heads * head_dim": kv_heads}.items():
        if size % PER_WORD:
            raise ValueError(
                f"{folder}: {name} is {size}, and AWQ packs {PER_WORD} outputs in a word"
            )


def _key(folder: Path, calibration: Tensor, group: int | None) -> str:
    """What the result depends on, as one string."""
    digest = hashlib.sha256(repr((group, tuple(calibration.shape))).encode())
    digest.update(calibration.long().contiguous().numpy().tobytes())
    digest.update((folder / "config.json").read_bytes())
    for file in weight_files(folder):
        about = file.stat()
        digest.update(repr((file.name, about.st_size, about.st_mtime_ns)).encode())
    return digest.hexdigest()[:16]
