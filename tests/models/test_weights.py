"""Weights arrive whole and converted, part by part; what is wrong with a checkpoint is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from minisgl.models import weights
from minisgl.models.weights import Weights, weight_files
from tests.models.random_checkpoints import checkpoint

CPU = torch.device("cpu")


def stored(folder: Path, **tensors: Tensor) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder


def opened(folder: Path, dtype: torch.dtype = torch.float32) -> Weights:
    return Weights(folder, dtype, CPU)


def test_a_box_of_a_tensor_is_copied_and_converted(tmp_path: Path) -> None:
    whole = torch.randn(6, 8).to(torch.bfloat16)
    with opened(stored(tmp_path, a=whole, b=torch.arange(5.0))) as source:
        part, line = source.empty(2, 3), source.empty(2)
        source.fill(part, "a", (6, 8), (3, 5))
        source.fill(line, "b", (5,), (3,))
    assert part.dtype == torch.float32
    assert torch.equal(part, whole[3:5, 5:8].float())
    assert line.tolist() == [3.0, 4.0]


def test_a_tensor_larger_than_a_mapping_is_copied_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_MAPPED_BYTES", 200)
    whole = torch.randn(37, 9)
    with opened(stored(tmp_path, a=whole)) as source:
        copy = source.empty(37, 9)
        source.fill(copy, "a", (37, 9))
    assert torch.equal(copy, whole)


def test_a_missing_weight_is_named_with_its_file_and_near_misses(tmp_path: Path) -> None:
    source = opened(stored(tmp_path, **{"layers.0.q_proj.weight": torch.zeros(2)}))
    with pytest.raises(
        ValueError,
        match="no weight layers.0.k_proj.weight in model.safetensors; near it: "
        "layers.0.q_proj.weight",
    ):
        source.fill(torch.zeros(2), "layers.0.k_proj.weight", (2,))


def test_a_wrong_shape_is_said_before_anything_is_read(tmp_path: Path) -> None:
    source, into = opened(stored(tmp_path, a=torch.ones(2, 3))), torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"a should measure \(3, 2\).*it is \(2, 3\)"):
        source.fill(into, "a", (3, 2))
    assert not into.any()


def test_what_nothing_reads_is_warned_of_once(tmp_path: Path) -> None:
    tensors = {f"w{i}": torch.zeros(1) for i in range(9)}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(1)
    with (
        pytest.warns(UserWarning, match="does not use 8 of its 10 weights: w1, .*, w5 and 3 more"),
        opened(stored(tmp_path, **tensors)) as source,
    ):
        source.fill(torch.zeros(1), "w0", (1,))


def test_nothing_is_warned_of_where_everything_is_read_or_recomputed(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(1), "head": torch.zeros(1), "x.rotary_emb.inv_freq": torch.zeros(1)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with opened(stored(tmp_path, **tensors)) as source:
            source.fill(torch.zeros(1), "a", (1,))
            source.ignore("head")


@pytest.mark.parametrize("keep", [0, 5, 60, -3])
def test_a_truncated_file_is_named(keep: int, tmp_path: Path) -> None:
    file = stored(tmp_path, a=torch.ones(20)) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.safetensors is not a whole safetensors file"):
        opened(tmp_path)


def test_a_pickle_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="pytorch_model.bin is a pickle.*convert it"):
        weight_files(tmp_path)


def test_a_folder_without_weights_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor .*index.json"):
        weight_files(tmp_path)


def index(folder: Path, weight_map: object) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/a.safetensors",
        "a/b.safetensors",
        "..",
        "x.bin",
        "",
        "a\\b.safetensors",
    ],
)
def test_an_index_names_only_files_of_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which is no file of this folder"):
        weight_files(index(tmp_path, {"a": name}))


@pytest.mark.parametrize("weight_map", [None, [1], {"a": 3}, {"a": ["b"]}])
def test_a_damaged_index_is_named(weight_map: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="index.json is damaged"):
        weight_files(index(tmp_path, weight_map))


def test_a_missing_shard_is_named_and_counted(tmp_path: Path) -> None:
    folder = checkpoint("qwen3_sharded").folder
    files = weight_files(folder)
    assert len(files) > 1
    for path in folder.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / files[0].name).unlink()
    there = f"{len(files) - 1} of the {len(files)} files"
    with pytest.raises(FileNotFoundError, match=f"has no {files[0].name}, {there}"):
        weight_files(tmp_path)


PEAK = """
import resource, sys, torch
from pathlib import Path
from types import SimpleNamespace
from minisgl.models.config import ModelConfig
from minisgl.models.weights import Weights
from minisgl.registry import find

def now(field):
    for line in open("/proc/self/status"):
        if line.startswith(field):
            return int(line.split()[1]) * 1024

folder = Path(sys.argv[1])
config = ModelConfig.read(folder)
make = find("model", config.architecture)
torch.empty(8) @ torch.empty(8)
before, highest = now("VmRSS"), now("VmHWM")
ranks = int(sys.argv[3])
group = SimpleNamespace(rank=ranks - 1, size=ranks)  # loading needs no other rank
with Weights(folder, getattr(torch, sys.argv[2]), torch.device("cpu")) as source:
    model = make(source, config, group)
size = {"float32": 4, "bfloat16": 2}[sys.argv[2]] * config.num_parameters / ranks
print((now("VmHWM") - before) / size, (highest - before) / size, size)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's memory account")
@pytest.mark.parametrize(("dtype", "ranks"), [("float32", 1), ("bfloat16", 1), ("float32", 2)])
def test_loading_takes_little_more_memory_than_a_ranks_part_of_the_model(
    dtype: str, ranks: int, tmp_path: Path
) -> None:
    shapes = write_large(tmp_path)
    command = [sys.executable, "-c", PEAK, str(tmp_path), dtype, str(ranks)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, import_peak, size = map(float, done.stdout.split())
    print(
        f"peak {peak:.2f} of {size / 1e6:.0f} MB; importing torch had peaked at {import_peak:.2f}"
    )
    whole = sum(shape.numel() for shape in shapes) * (4 if dtype == "float32" else 2)
    assert size == whole / ranks
    limit = 1.25 if size > 150e6 else 1.35  # half the model, the same 16 MB of mapping
    assert max(1.0, import_peak) <= peak <= limit


def write_large(folder: Path) -> list[torch.Size]:
    """A float32 Llama of 200 MB whose embedding is larger than a mapping."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 24_000,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    layer = {f"self_attn.{x}_proj": (512, 512) for x in "qkvo"}
    layer |= {
        "mlp.gate_proj": (1536, 512),
        "mlp.up_proj": (1536, 512),
        "mlp.down_proj": (512, 1536),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (24_000, 512),
        "lm_head": (24_000, 512),
        "model.norm": (512,),
    }
    for i in range(8):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{i}.{norm}"] = (512,)
    tensors = {f"{name}.weight": torch.full(shape, 0.5) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return [tensor.shape for tensor in tensors.values()]
