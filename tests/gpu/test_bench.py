"""On a GPU: another engine's steps carry the shape's name, and toggles are ablated there, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from minisgl.bench import work
from minisgl.bench.gpu import ablated, transformers_steps
from minisgl.config import EngineConfig

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows the ids of a benchmark's prompts."""
    return work.write(work.MICRO | {"vocab_size": 10_000}, tmp_path_factory.mktemp("micro"))


def test_steps_of_transformers_carry_the_shapes_name(folder: Path) -> None:
    lines = list(transformers_steps("0.6B", folder, (1, 2), steps=8))
    assert [(line["model"], line["side"], line["batch"]) for line in lines] == [
        ("0.6B", "transformers", 1),
        ("0.6B", "transformers", 2),
    ]
    assert all(line["ms per step"] > 0 for line in lines)


def test_overlap_and_graphs_are_ablated(folder: Path) -> None:
    base = EngineConfig(device="cuda", dtype="bfloat16", max_seq_len=2048, num_pages=512)
    off = {"overlap": [False], "cuda_graph": [False]}
    lines = list(ablated("micro", folder, base, off, repeats=2, rows=4))
    assert [line["ablated"] for line in lines] == ["overlap=False"] * 2 + ["cuda_graph=False"] * 2
    assert all(0 < line["from"] <= line["to base"] <= line["to"] for line in lines)
