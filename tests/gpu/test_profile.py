"""On a GPU a profile has the kernels of each step, on the host's clock, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

import minisgl
from minisgl.bench import timeline
from minisgl.core import SamplingParams
from minisgl.engine.engine import Engine

pytestmark = pytest.mark.gpu
_APART = 1e-3  # seconds: a batch that nobody waits for is placed by its launch, so too early


def load(cuda_graph: bool, overlap: bool) -> Engine:
    config = minisgl.EngineConfig(device="cuda", dtype="bfloat16", num_pages=1024)
    engine = minisgl.load("tiny", config.but(cuda_graph=cuda_graph, overlap=overlap))
    for seed in range(4):
        prompt = [20 + (seed * 7919 + i * 104729) % 1000 for i in range(40)]
        engine.add(prompt, SamplingParams(max_tokens=40, ignore_eos=True))
    return engine


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "in turn"])
@pytest.mark.parametrize("cuda_graph", [True, False], ids=["graph", "eager"])
def test_kernels_lie_within_their_steps_and_tokens_stay(cuda_graph: bool, overlap: bool) -> None:
    with load(cuda_graph, overlap) as plain, load(cuda_graph, overlap) as engine:
        plain.run()
        engine.run(max_steps=6)
        profile = engine.profile(steps=8)
        engine.run()
        for rid, request in plain.requests.items():
            assert request.output == engine.requests[rid].output
    batches = {
        record.batch.step: span
        for record in profile.records
        for span in record.spans
        if span.lane == "device"
    }
    assert {span.step for span in profile.kernels} - {None} == set(profile.steps)
    assert any(span.name.startswith("Memcpy") for span in profile.kernels)
    for span in profile.spans:
        if span.step is not None:
            batch = batches[span.step]
            assert batch.start - _APART < span.start <= span.end < batch.end + _APART
            assert span.launched is not None and span.launched < span.start + _APART
    graphs = [span for span in profile.spans if span.lane == "device graphs"]
    assert [span.step for span in graphs] == (list(profile.steps) if cuda_graph else [])
    for graph in graphs:
        inside = [s for s in profile.kernels if s.launched == graph.launched]
        assert len(inside) > 6 and all(graph.start <= s.start <= graph.end for s in inside)
    assert 0 < profile.covered <= 1


def test_a_profile_can_follow_another() -> None:
    with load(True, True) as engine:
        engine.run(max_steps=4)
        first, second = engine.profile(steps=3), engine.profile(steps=3)
    count = {
        name: sum(span.step == profile.steps[-1] for span in profile.kernels)
        for name, profile in (("first", first), ("second", second))
    }
    assert count["first"] == count["second"] > 0


def test_the_four_arms_are_recorded_in_a_small_file(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    said = list(timeline.record(path))
    assert len(said) == 5 and path.stat().st_size < 300_000
    made = timeline.read(path)
    assert made.is_gpu and made.arms[0].name == "graphs on, overlap on"
    for arm in made.arms:
        graphs = [span for span in arm.profiled.spans if span.lane == "device graphs"]
        assert bool(graphs) == arm.toggles["cuda_graph"]
