"""``minisgl quantize``: text becomes the tokens that a model's four bits are fitted to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from minisgl.build import hardware
from minisgl.config import EngineConfig
from minisgl.engine.codec import Codec
from minisgl.resolve import resolve

if TYPE_CHECKING:
    from torch import Tensor

    from minisgl.quantize.fitting import MatrixError


def run(
    model: str, out: Path, text: Path | None, group: int | None, samples: int, length: int
) -> Iterator[str]:
    """Quantise ``model`` to the folder ``out``, and say what that did, line by line.

    text: a file of the kind of text that the model is for; None: what our own generator writes.
    samples, length: pieces of it, and tokens in each. Raises what ``quantise`` does.
    """
    import torch

    from minisgl.models.hub import locate
    from minisgl.models.weights import weight_files
    from minisgl.quantize.folder import quantise
    from minisgl.tokenizer import load_codec

    folder = locate(model)
    torch.set_num_threads(_threads(folder))
    codec = load_codec(folder)
    if codec is None:
        raise ValueError(f"{folder} has no tokenizer files, which calibration needs")
    pieces = calibration(codec, text, samples, length)
    whose = "minisgl's own stories and sums (--calibration takes yours)" if text is None else text
    yield f"{model}: {len(pieces)} pieces of {length} tokens from {whose}"
    made = quantise(folder, out, pieces, group)
    yield from _table(made.errors)
    before = sum(file.stat().st_size for file in weight_files(folder))
    yield f"weights: {made.num_bytes / 1e6:.1f} MB, before {before / 1e6:.1f} MB"
    yield f"minisgl --model {out}"


def _threads(folder: Path) -> int:
    """As many as an engine would compute this model with on the CPU."""
    from minisgl.models.config import ModelConfig

    asked = EngineConfig(device="cpu", attention="grouped", kernels="torch")
    final = resolve(asked, hardware(), {}, ModelConfig.read(folder).facts())
    assert isinstance(final.threads, int)
    return final.threads


def calibration(codec: Codec, text: Path | None, samples: int, length: int) -> Tensor:
    """(samples, length) token ids, evenly spaced in a text; fewer where it is short.

    Raises ValueError, with the numbers, for a text that is shorter than one piece.
    """
    import torch

    ids = list[int]()
    if text is not None:
        ids = list(codec.encode(text.read_text(encoding="utf-8")))
        if len(ids) < length:
            raise ValueError(
                f"{text} makes {len(ids)} tokens and a piece has {length}; give a longer text or "
                f"a smaller --length"
            )
    else:
        from minisgl.tiny.generate import corpus

        documents = corpus(seed=0)
        while len(ids) < samples * length:
            ids += codec.encode("".join(segment.text for segment in next(documents)))
    count = min(samples, len(ids) // length)
    apart = (len(ids) - length) // max(1, count - 1)
    return torch.tensor([ids[i * apart : i * apart + length] for i in range(count)])


def _table(errors: list[MatrixError]) -> Iterator[str]:
    """The errors of each kind of matrix, the mean of all layers."""
    kinds: dict[str, list[MatrixError]] = {}
    for error in errors:
        kinds.setdefault(error.name.rpartition(".")[2], []).append(error)
    yield f"{'error of outputs':>18}  rounded  fitted"
    for kind, some in kinds.items():
        rounded, fitted = fmean(e.rounded for e in some), fmean(e.fitted for e in some)
        yield f"{kind:>18}  {rounded:7.1%} {fitted:7.1%}"
