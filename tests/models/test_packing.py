"""What JSON says of packed weights is read in both spellings; what is not AWQ is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AwqConfig, GPTQConfig

from minisgl.layers.source import Part
from minisgl.models.fields import Fields
from minisgl.models.packing import Packing

AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
GPTQ: dict[str, Any] = {"bits": 4, "group_size": 128, "desc_act": False, "sym": True}


def read(folder: Path, inner: dict[str, Any] | None = None, **files: dict[str, Any]) -> Packing:
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    values = {} if inner is None else {"quantization_config": inner}
    packing = Packing.read(folder, Fields(values, "config.json"))
    assert packing is not None
    return packing


def test_nothing_is_packed_where_nothing_says_so(tmp_path: Path) -> None:
    assert Packing.read(tmp_path, Fields({"quantization_config": None}, "config.json")) is None


@pytest.mark.parametrize("group", [32, 64, 128, -1])
def test_both_spellings_and_all_files_are_read(group: int, tmp_path: Path) -> None:
    wanted = None if group < 0 else group
    old = {"w_bit": 4, "q_group_size": group, "zero_point": True, "version": "GEMM"}
    assert read(tmp_path, AWQ | {"group_size": group}).group == wanted
    assert read(tmp_path, {"quant_method": "AWQ", **old}).group == wanted
    assert read(tmp_path, quantize_config={**AWQ, "group_size": group}).group == wanted
    found = read(tmp_path, quant_config=old)
    assert found.group == wanted and found.where.endswith("quant_config.json")


def test_what_transformers_writes_is_read(tmp_path: Path) -> None:
    written = json.loads(AwqConfig(bits=4, group_size=64).to_json_string(use_diff=False))
    assert read(tmp_path, written).group == 64


def test_config_json_counts_before_the_other_files(tmp_path: Path) -> None:
    assert read(tmp_path, AWQ, quant_config=AWQ | {"group_size": 32}).group == 128


@pytest.mark.parametrize(
    ("inner", "says"),
    [
        (AWQ | {"bits": 8}, "8 bits is not supported; .*bits=4.*minisgl quantize"),
        (AWQ | {"version": "gemv"}, "the layout 'gemv' is not supported"),
        (AWQ | {"version": "marlin"}, "the layout 'marlin' is not supported"),
        (AWQ | {"backend": "llm-awq"}, "the layout of backend='llm-awq' is not supported"),
        (AWQ | {"zero_point": False}, "zero_point=false is not supported"),
        (AWQ | {"group_size": 0}, "group_size is 0; it must be .* or -1 for all inputs"),
        (AWQ | {"group_size": "128"}, "group_size is '128'; it must be a whole number"),
        (GPTQ | {"quant_method": "gptq"}, "quant_method='gptq' is not supported"),
        ({"quant_method": "fp8"}, "quant_method='fp8' is not supported"),
        ({"quant_method": "compressed-tensors"}, "quant_method='compressed-tensors' is not"),
        ({"bits": 4, "group_size": 64}, "quant_method is missing"),
    ],
)
def test_what_is_not_awq_in_four_bits_is_refused(
    inner: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"config.json: quantization_config: {says}"):
        read(tmp_path, inner)


def test_the_file_of_a_gptq_checkpoint_is_known_by_its_fields(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="quantize_config.json: quant_method='gptq' is not"):
        read(tmp_path, quantize_config=GPTQ)
    made = json.loads(GPTQConfig(bits=4).to_json_string(use_diff=False))
    with pytest.raises(ValueError, match="quant_method='gptq' is not"):
        read(tmp_path, made)


@pytest.mark.parametrize(
    ("group", "inputs", "columns", "rows", "says"),
    [
        (32, 96, range(48, 96), range(64), "each 32 of its 96 inputs; a rank's part, 48 to 96,"),
        (128, 192, range(192), range(64), "the 192 inputs of w are no whole groups of 128"),
        (32, 96, range(96), range(12, 24), "8 outputs in a word; a rank's part, 12 to 24, cuts"),
    ],
)
def test_a_part_that_cuts_through_a_group_or_a_word_is_refused_with_the_numbers(
    group: int, inputs: int, columns: range, rows: range, says: str
) -> None:
    def fill(into: Tensor, name: str, shape: Any, at: Any = None) -> None:
        raise AssertionError("nothing is read")

    packing, cpu = Packing(group, "config.json"), torch.device("cpu")
    with pytest.raises(ValueError, match=says):
        packing.matrix(fill, [Part("w", 64, rows)], inputs, columns, torch.float32, cpu)
