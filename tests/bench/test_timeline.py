"""Timelines are recorded, kept small, and read back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minisgl.__main__ import main
from minisgl.bench import timeline
from minisgl.bench.timeline import per_step, read, stored
from tests.trace.test_profile import profile


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("timeline") / "timeline.json"
    assert main(["bench", "--timeline", str(path)]) == 0
    return path


def test_every_arm_has_a_plain_and_a_profiled_run_of_the_same_work(recorded: Path) -> None:
    made = read(recorded)
    assert [arm.name for arm in made.arms] == ["overlap on", "overlap off"]
    assert {"device", "date", "model", "versions", "command"} <= made.about.keys()
    assert not made.is_gpu and made.about["device"] in made.source
    assert recorded.stat().st_size < 300_000
    for arm in made.arms:
        assert arm.plain.spans == () and len(arm.plain.steps) == len(arm.plain.records) == 13
        assert len(arm.profiled.steps) == 4 and arm.profiled.kernels
        assert {span.step for span in arm.profiled.spans} == set(arm.profiled.steps)
        assert 0 < arm.profiled.covered <= 1 and per_step(arm.plain) > 0
        for run in (arm.plain, arm.profiled):
            assert run.timeline().clocks_agree
            prompts, *decodes = (record.batch.words for record in run.records)
            assert prompts.startswith("prefill") and set(decodes) == {"decode 4"}
        words = f"steps {arm.profiled.steps[0]} to {arm.profiled.steps[-1]}".capitalize()
        assert arm.profiled.plot().alt.startswith(words)
    assert "overlap on" in made._repr_html_() and "overlap on" in repr(made)


def test_a_profile_is_read_back_to_a_tenth_of_a_microsecond() -> None:
    before, names = profile(), list[str]()
    written = timeline._written(before, names)
    again = timeline._profile(json.loads(json.dumps(written)), names)
    assert again.steps == before.steps
    zero = min(span.start for record in before.records for span in record.spans)
    for a, b in zip(before.spans, again.spans, strict=True):
        assert (a.lane, a.name, a.step) == (b.lane, b.name, b.step)
        assert abs(a.start - zero - b.start) < 1.1e-7 and abs(a.end - zero - b.end) < 1.1e-7
        assert (a.launched is None) == (b.launched is None)
        assert a.launched is None or abs(a.launched - zero - (b.launched or 0)) < 2.1e-7
    for one, other in zip(before.records, again.records, strict=True):
        assert one.batch.words == other.batch.words and one.batch.step == other.batch.step
        assert [span.name for span in one.spans] == [span.name for span in other.spans]
    assert [t.calls for t in again.totals()] == [t.calls for t in before.totals()]


def test_a_folder_that_is_not_there_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot write .*no/a.json: there is no folder .*no"):
        next(timeline.record(tmp_path / "no" / "a.json"))


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    for text in ("[]", "no JSON"):
        path.write_text(text)
        with pytest.raises(ValueError, match="other.json holds no timelines"):
            read(path)


def test_the_timeline_that_comes_with_minisgl_is_from_a_gpu_and_small() -> None:
    made = stored()
    assert made.about == read(str(timeline.STORED)).about
    assert made.source.startswith("Recorded on one NVIDIA H200, 20")
    assert made.is_gpu and timeline.STORED.stat().st_size < 300_000
    for arm in made.arms:
        graphs = [span for span in arm.profiled.spans if span.lane == "device graphs"]
        assert bool(graphs) == arm.toggles["cuda_graph"]
        assert len(arm.profiled.kernels) > 1000
