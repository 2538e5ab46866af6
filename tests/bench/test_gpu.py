"""What the GPU's benchmark measures, as far as a CPU can: the engine is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minisgl.bench import work
from minisgl.bench.gpu import ablated
from minisgl.bench.gpu_steps import decode
from minisgl.build import load
from minisgl.config import EngineConfig

SIZES = EngineConfig(max_seq_len=2048, num_pages=512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows the ids of a benchmark's prompts."""
    return work.write(work.MICRO | {"vocab_size": 10_000}, tmp_path_factory.mktemp("micro"))


@pytest.mark.parametrize("overlap", [True, False])
def test_work_of_the_host_is_hidden_by_overlap_alone(folder: Path, overlap: bool) -> None:
    with load(folder, SIZES.but(overlap=overlap)) as engine:
        steps = decode(engine, 4, steps=24)
    assert 0 < steps.low <= steps.wall <= steps.high
    assert steps.device > 0 and steps.host > 0
    assert (steps.hidden > 0) == overlap


def test_an_ablation_has_an_interval_for_each_toggle_and_metric(folder: Path) -> None:
    toggles: dict[str, list[Any]] = {"overlap": [False], "kernels": ["torch"]}
    lines = list(ablated("micro", folder, SIZES, toggles, repeats=2, rows=2))
    assert [(line["ablated"], line["metric"]) for line in lines] == [
        ("overlap=False", "throughput"),
        ("overlap=False", "itl"),
        ("kernels=torch", "throughput"),
        ("kernels=torch", "itl"),
    ]
    for line in lines:
        assert line["model"] == "micro" and line["batch"] == 2
        assert 0 < line["from"] <= line["to base"] <= line["to"]
        assert line["verdict"] == "too few runs"
