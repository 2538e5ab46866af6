"""The benchmark runs, on sizes that say nothing about speed: its numbers are never asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from minisgl.bench import host, limits, report, work
from minisgl.bench.measure import in_turn, ratios
from minisgl.bench.sides import Generate, Ours, Side

VOCAB = work.MICRO["vocab_size"]
MACHINE = limits.Machine(1e9, 1e9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return work.write(work.MICRO, tmp_path_factory.mktemp("micro"))


def test_sides_answer_the_same_requests_with_the_same_tokens(folder: Path) -> None:
    sides: list[Side] = [Ours(folder), Generate(folder, 2), Generate(folder, 3, "prompt")]
    for make in (
        partial(work.mixed, count=5, longest=32, vocab_size=VOCAB),
        partial(work.sharing, count=3, prefix=20, vocab_size=VOCAB),
        partial(work.equal, count=1, prompt=4, num_tokens=5, vocab_size=VOCAB),
    ):
        results = in_turn(sides, make, rounds=1)
        assert [result.equal for result in results] == [1.0, 1.0, 1.0]
        assert next(ratios(results)) == 1.0


def test_work_is_a_function_of_its_seed() -> None:
    assert work.mixed(3) == work.mixed(3) != work.mixed(4)
    one, two = (asked.prompt for asked in work.sharing(0, 2, 100).requests)
    assert one[:100] == two[:100] and one[100:] != two[100:]


def test_the_limit_counts_a_shared_prefix_once_and_falls_with_the_weights() -> None:
    shared = work.sharing(0, 4, 200)
    apart = shared._replace(shared=0)
    assert limits.limit(shared, work.SMALL, MACHINE) > limits.limit(apart, work.SMALL, MACHINE)
    one = work.equal(0, 1, 1, 10)
    slow = limits.limit(one, work.SMALL, MACHINE._replace(products=1e15))
    weights = 4 * (256 * (2 * 12 * 32 + 3 * 768)) + 32_000 * 256
    assert slow == pytest.approx(1e9 / 4 / weights)


def test_what_the_host_costs_is_measured_at_the_sizes_asked_for() -> None:
    assert host.decoding(3, steps=40, record=True).at == 3
    assert host.decoding(3, waiting=7, steps=4).what == "decoding beside 7 waiting"
    assert host.evicting(40, steps=4).commit > 0


def test_measuring_needs_nothing_that_draws() -> None:
    without = "import sys; sys.modules['matplotlib'] = None; from minisgl.bench import report"
    subprocess.run([sys.executable, "-c", without], check=True)


def test_a_table_is_of_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--table is for the parts gpu and awq"):
        list(report.run(("cpu",), figures=tmp_path / "gpu.csv"))
    with pytest.raises(ValueError, match="cannot write .*no/gpu.csv: there is no folder .*no"):
        list(report.run(("gpu",), figures=tmp_path / "no" / "gpu.csv"))


def test_only_files_are_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=f"cannot write {tmp_path}: it is there and no file"):
        list(report.run(("host",), to=tmp_path))
    os.mkfifo(tmp_path / "device")
    with pytest.raises(ValueError, match="cannot write .*/device: it is there and no file"):
        list(report.run(("host",), to=tmp_path / "device"))
    (tmp_path / "link").symlink_to(tmp_path / "file")
    monkeypatch.setitem(report.PARTS, "host", lambda _: iter([{"what": "x"}]))
    list(report.run(("host",), to=tmp_path / "link"))
    assert (tmp_path / "link").is_symlink() and "x" in (tmp_path / "file").read_text()


def test_a_run_that_is_killed_leaves_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = {"gpu": "X", "torch": "2"}
    monkeypatch.setitem(report.PARTS, "gpu", lambda _: iter([gpu, {"what": "never"}]))
    run = report.run(("gpu",), to=tmp_path / "a.json", figures=tmp_path / "a.csv")
    assert [next(run) for _ in range(3)][2] == "X  2"
    assert json.loads((tmp_path / "a.json").read_text())["lines"] == [{"part": "gpu"} | gpu]
    assert (tmp_path / "a.csv").read_text().startswith("# One X, ")


def test_parts_report_line_by_line_and_as_json(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "out.json"
    some = {"host": lambda quick: iter([host.decoding(2, steps=2)._asdict()])}
    monkeypatch.setattr(report, "PARTS", some)
    said = list(report.run((), True, file))
    assert "torch" in said[0] and any("decoding" in line for line in said)
    assert json.loads(file.read_text())["lines"][0]["at"] == 2
    with pytest.raises(ValueError, match="no such part: speed; there are host"):
        list(report.run(("speed",)))
