"""AWQ checkpoints as they are published load to the very weights that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

import minisgl
from minisgl.distributed.group import ALONE, Group
from minisgl.executor.forward import Forward
from minisgl.executor.torch_runner import load_model
from minisgl.models.config import ModelConfig
from tests.executor.batches import Sequences, config
from tests.models.random_checkpoints import KINDS, Checkpoint
from tests.models.test_logits import Spy, ids
from tests.models.test_tensor_parallel import ranks
from tests.quantization.published import write

SIZES: dict[str, Any] = dict(
    hidden_size=128, intermediate_size=256, head_dim=32, num_hidden_layers=2
)
SAYS: dict[str, Any] = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 32,
    "zero_point": True,
    "version": "gemm",
    "modules_to_not_convert": None,
}
OLD: dict[str, Any] = {"w_bit": 4, "q_group_size": 64, "zero_point": True, "version": "GEMM"}
WAYS = {  # group size, what says so, in which file
    "config": (32, SAYS, "config.json"),
    "quant_config": (64, OLD, "quant_config.json"),
    "quantize_config": (128, SAYS | {"group_size": 128}, "quantize_config.json"),
    "one_group": (-1, OLD | {"q_group_size": -1}, "quant_config.json"),
    "transformers_5": (32, SAYS | {"desc_act": False, "backend": "auto"}, "config.json"),
}
Make = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="module")
def dense() -> Checkpoint:
    return Checkpoint(KINDS["qwen3"], **SIZES)


def logits(folder: Path, group: Group = ALONE, **changes: Any) -> Tensor:
    """Logits of the prompt ids(20, 1), of another prompt, and of two decodes of both."""
    torch.set_num_threads(1)
    model_config = ModelConfig.read(folder)
    asked: dict[str, Any] = {"quantization": "awq" if model_config.packing else None}
    final = config(4, **asked | changes)
    spy = Spy(load_model(folder, model_config, final, group))
    forward, to, prompt = Forward(spy, model_config, final, group, 2), Sequences(4, 64), ids(20, 1)
    forward.run(to.batch(to.row(0, prompt[:12], emits=False)))
    forward.run(to.batch(to.row(0, prompt[12:]), to.row(1, [5])))
    for _ in range(2):
        forward.run(to.batch(to.row(0), to.row(1)))
    return torch.cat(spy.logits_of_all)


@pytest.mark.parametrize("way", WAYS)
def test_a_published_checkpoint_computes_what_its_weights_unpacked_compute(
    way: str, dense: Checkpoint, tmp_path: Path
) -> None:
    group, says, file = WAYS[way]
    packed, twin = write(dense.folder, tmp_path, group, says, file)
    assert torch.equal(logits(packed), logits(twin)), "in torch, bit for bit"
    assert torch.equal(logits(packed, quantization=None), logits(twin))
    native = logits(packed, attention="native")
    torch.testing.assert_close(native, logits(twin, attention="native"), atol=1e-4, rtol=0)
    close = logits(packed, quantization="fp16") - logits(twin)
    assert 0 < close.abs().max() < 0.1


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("way", ["config", "one_group"])
def test_ranks_hold_their_part_of_the_packed_weights(
    way: str, size: int, dense: Checkpoint, tmp_path: Path
) -> None:
    group, says, file = WAYS[way]
    packed, twin = write(dense.folder, tmp_path, group, says, file)
    alone = logits(twin)
    for kind in ("grouped", "native"):
        of_rank = partial(logits, packed, attention=kind)
        with ThreadPoolExecutor(size) as pool:
            for together in pool.map(of_rank, ranks(size)):
                torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_what_config_json_leaves_unpacked_by_name_is_read_as_it_is(
    dense: Checkpoint, tmp_path: Path
) -> None:
    unpacked = ["layers.1.mlp", "layers.0.self_attn.k_proj"]  # one of three that are stacked
    says = SAYS | {"modules_to_not_convert": unpacked}
    packed, twin = write(dense.folder, tmp_path, 32, says, dense_modules=unpacked)
    assert torch.equal(logits(packed), logits(twin))
    native = logits(packed, attention="native")
    torch.testing.assert_close(native, logits(twin), atol=1e-4, rtol=0)


def test_an_engine_takes_four_bits_by_itself_and_says_so(dense: Checkpoint, tmp_path: Path) -> None:
    packed, twin = write(dense.folder, tmp_path, 32, SAYS)
    ask = minisgl.SamplingParams(max_tokens=24, ignore_eos=True)
    said = []
    for folder, kept in ((packed, "awq"), (twin, None)):
        with minisgl.load(folder) as engine:
            assert engine.config.quantization == kept
            requests = [engine.add(ids(n, n), ask) for n in (3, 17, 40)]
            engine.run()
            said.append([request.output for request in requests])
    assert said[0] == said[1]
    with pytest.raises(ValueError, match="stored in float32, not in four bits: minisgl quantize"):
        minisgl.load(twin, quantization="awq")


def change(file: Path, name: str, to: Callable[[Any], Any]) -> None:
    tensors = load_file(file)
    tensors[name] = to(tensors[name])
    save_file(tensors, file)


def test_what_is_wrong_with_a_packed_checkpoint_is_named(dense: Checkpoint, tmp_path: Path) -> None:
    packed, _ = write(dense.folder, tmp_path, 32, SAYS)
    weights, o = packed / "model.safetensors", "model.layers.0.self_attn.o_proj"

    def refused(says: str) -> None:
        with pytest.raises(ValueError, match=says):
            logits(packed)

    good = weights.read_bytes()
    change(weights, f"{o}.scales", lambda x: x.astype(np.float32) * 1.0001)
    refused("o_proj.scales holds numbers that AWQ's float16 cannot hold")
    weights.write_bytes(good)
    change(weights, f"{o}.qweight", lambda x: x.astype(np.float32))
    refused("o_proj.qweight should hold integers; it holds F32")
    weights.write_bytes(good)
    change(weights, f"{o}.qzeros", lambda x: x[1:])
    refused(r"o_proj.qzeros should measure \(4, 16\), config.json says; it is \(3, 16\)")
    weights.write_bytes(good)
    text = json.loads((packed / "config.json").read_text())
    text["quantization_config"]["group_size"] = 64
    (packed / "config.json").write_text(json.dumps(text))
    refused(r"qzeros should measure \(2, 16\), config.json says; it is \(4, 16\)")
    del text["quantization_config"]
    (packed / "config.json").write_text(json.dumps(text))
    refused("q_proj is packed, and neither config.json .* nor quant_config.json says how")
