"""The embedded model in four bits: what `minisgl quantize` makes of it, and as right as before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import minisgl
from minisgl.calibrate import calibration
from minisgl.kernel.int4 import unpack
from minisgl.quantize.folder import fit, quantise
from minisgl.tiny import awq_path, evaluate, path
from minisgl.tiny.generate import examples
from minisgl.tiny.skills import SKILLS
from minisgl.tokenizer import load_codec


def pieces() -> torch.Tensor:
    """What the command takes by default."""
    codec = load_codec(path())
    assert codec is not None
    return calibration(codec, None, 32, 512)


def same(made: Path) -> None:
    """Another CPU may add in another order, and then here and there a code is the next one."""
    shipped = load_file(awq_path() / "model.safetensors")
    for name, tensor in load_file(made).items():
        there = shipped[name]
        if name.endswith(("weight", "qzeros")) and tensor.dtype == torch.int32:
            assert (unpack(tensor) == unpack(there)).float().mean() > 0.97, name
        else:
            torch.testing.assert_close(tensor, there, atol=1e-3, rtol=0.06)


def test_the_shipped_files_are_what_the_command_makes(tmp_path: Path) -> None:
    next(fit(path(), tmp_path, pieces(), 128))
    same(tmp_path / "unfinished" / "layer-00000.safetensors")
    config = json.loads((awq_path() / "config.json").read_text())
    config.pop("quantization_config")
    assert config == json.loads((path() / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (awq_path() / name).read_bytes() == (path() / name).read_bytes()


@pytest.mark.slow
def test_the_whole_of_the_shipped_model_is_what_the_command_makes(tmp_path: Path) -> None:
    quantise(path(), tmp_path / "out", pieces(), 128)
    same(tmp_path / "out" / "model.safetensors")


def test_it_takes_a_third_of_the_room() -> None:
    assert sum(file.stat().st_size for file in awq_path().iterdir()) <= 2_600_000


@pytest.mark.parametrize("toggles", [{}, {"kernels": "torch"}, {"tp": 2}], ids=str)
def test_held_out_prompts_are_answered_right(toggles: dict[str, Any]) -> None:
    with minisgl.load("tiny-awq", **toggles) as engine:
        assert engine.config.quantization == "awq"
        asked = []
        for skill in SKILLS:
            for messages, answer in examples(skill, 2, seed=3):
                asked.append((engine.add(messages, minisgl.SamplingParams(max_tokens=320)), answer))
        engine.run()
    assert [request.text for request, _ in asked] == [answer for _, answer in asked]


def test_the_measurement_reads_four_bits_too() -> None:
    tokenizer, model = evaluate.load(path())
    _, packed = evaluate.load(awq_path())
    head, _, line, last = evaluate.comparison(tokenizer, model, packed, ["talk"], 2)
    assert head.startswith("| skill | prompts | right | other right | same text |")
    assert line.startswith("| talk | 2 | 100.0 % | 100.0 % | 100.0 % | ")
    assert last.startswith("| all | 2 | ")
