"""A quantised folder is an AWQ checkpoint that others read, and a run that was stopped goes on."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AwqConfig

from minisgl.models.config import ModelConfig
from minisgl.quantize import result
from minisgl.quantize.folder import fit, quantise
from tests.models.random_checkpoints import KINDS, VOCAB, Checkpoint
from tests.models.test_logits import ids
from tests.quantization import published
from tests.quantization.test_loading import logits

SIZES: dict[str, Any] = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=3)


@functools.cache
def made(name: str) -> Checkpoint:
    return Checkpoint(KINDS[name], **SIZES)


def calibration(length: int = 24) -> Tensor:
    return torch.randint(VOCAB, (6, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["qwen2", "llama3"])
def test_an_independent_reader_finds_the_model_that_we_compute(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made_of = quantise(made(name).folder, out, calibration(), 32)
    says = json.loads((out / "config.json").read_text())["quantization_config"]
    asked = AwqConfig.from_dict(dict(says))
    assert (asked.bits, asked.group_size, asked.zero_point, asked.format) == (4, 32, True, "gemm")
    tensors = published.unpacked(out)
    described = AutoConfig.from_pretrained(out)
    del described.quantization_config
    model = AutoModelForCausalLM.from_config(described, dtype=torch.float32).eval()
    state = {key: torch.from_numpy(x).float() for key, x in tensors.items()}
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert missing.missing_keys == ["lm_head.weight"] * described.tie_word_embeddings
    model.tie_weights()
    with torch.inference_mode():
        expected = model(torch.tensor([ids(20, 1)])).logits[0]
    torch.testing.assert_close(logits(out)[:20], expected, atol=2e-4, rtol=0)
    assert {error.name for error in made_of.errors} == {
        key.removesuffix(".qweight") for key in load_file(out / "model.safetensors") if "qw" in key
    }
    assert made_of.num_bytes == sum(x.nbytes for x in load_file(out / "model.safetensors").values())


def test_a_run_that_was_stopped_goes_on_with_the_next_layer(tmp_path: Path) -> None:
    folder = made("qwen2").folder
    whole = quantise(folder, tmp_path / "whole", calibration(), 32)
    stopped = fit(folder, out := tmp_path / "out", calibration(), 32)
    first = next(stopped), next(stopped)
    del stopped
    assert not (out / "config.json").exists(), "what is not whole is no model"
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        ModelConfig.read(out)
    layer = next((out / "unfinished").glob("layer-00001*"))
    written = layer.stat().st_mtime_ns
    again = fit(folder, out, calibration(), 32)
    assert (next(again), next(again)) == first
    assert layer.stat().st_mtime_ns == written, "not computed once more"
    del again
    assert quantise(folder, out, calibration(), 32).errors == whole.errors
    files = {path.name for path in (tmp_path / "whole").iterdir()}
    assert files == {path.name for path in out.iterdir()}
    for name in files:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_large_model_is_written_in_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result, "_FILE_BYTES", 40_000)
    folder, calibrated = made("qwen2").folder, calibration()
    quantise(folder, tmp_path / "several", calibrated, 32)
    monkeypatch.undo()
    quantise(folder, tmp_path / "one", calibrated, 32)
    files = sorted(path.name for path in (tmp_path / "several").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "several/model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert torch.equal(logits(tmp_path / "several"), logits(tmp_path / "one"))


def test_tokenizer_files_come_along_and_weights_in_other_forms_do_not(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(made("qwen2").folder, source)
    for name in (
        "tokenizer.json",
        "LICENSE",
        "chat_template.jinja",
        "pytorch_model.bin",
        ".secret",
    ):
        (source / name).write_text(name)
    quantise(source, tmp_path / "out", calibration(), 32)
    there = {path.name for path in (tmp_path / "out").iterdir()}
    weights = {"config.json", "generation_config.json", "model.safetensors"}
    assert there == weights | {"tokenizer.json", "LICENSE", "chat_template.jinja"}


def test_other_work_in_the_folder_is_not_overwritten(tmp_path: Path) -> None:
    folder = made("qwen2").folder
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds notes.txt; give a new folder"):
        quantise(folder, tmp_path, calibration(), 32)
    next(fit(folder, tmp_path / "out", calibration(), 32))
    for text, group in ((calibration(23), 32), (calibration(), 16)):
        with pytest.raises(FileExistsError, match="unfinished run with another model, text or"):
            quantise(folder, tmp_path / "out", text, group)


def test_what_cannot_be_quantised_is_said_before_anything_is_written(tmp_path: Path) -> None:
    folder, out = made("qwen2").folder, tmp_path / "out"

    def refused(says: str, text: Tensor, group: int = 32, model: Path = folder) -> None:
        with pytest.raises(ValueError, match=says):
            quantise(model, out, text, group)
        assert not out.exists()

    refused("hidden_size is 64, no whole groups of 48", calibration(), 48)
    refused("intermediate_size is 96, no whole groups of 64", calibration(), 64)
    refused(r"2 to 256 tokens; it measures \(6, 257\)", calibration(257))
    refused(r"it measures \(5,\)", torch.arange(5))
    refused("tokens 0 to 101; the model knows 0 to 100", torch.tensor([[0, 101]]))
    narrow = made("qwen3_sharded").folder  # one key head of 20
    refused("head_dim is 20, and AWQ packs 8 outputs in a word", calibration(), 16, narrow)
    quantise(folder, tmp_path / "packed", calibration(), 32)
    refused("is packed in four bits already", calibration(), 32, tmp_path / "packed")


def test_one_group_for_all_inputs(tmp_path: Path) -> None:
    quantise(made("qwen2").folder, tmp_path / "out", calibration(), None)
    says = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert says["group_size"] == -1
    assert logits(tmp_path / "out").isfinite().all()
