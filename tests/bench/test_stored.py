"""The stored GPU figures are those of RESULTS.md, and are drawn with all their numbers in words."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from minisgl.bench import stored, table
from minisgl.bench.table import Measured, label, measured

RESULTS = Path(stored.__file__).with_name("RESULTS.md").read_text(encoding="utf-8")


def line(start: str) -> str:
    """The one line of a table that begins so."""
    (found,) = re.findall(rf"^\| {re.escape(start)} \|.*$", RESULTS, re.MULTILINE)
    assert isinstance(found, str)
    return found


def numbers(text: str) -> list[float]:
    return [float(word) for word in re.findall(r"\d+\.?\d*", text)]


def of(what: str, model: str, case: str) -> list[Measured]:
    rows = [row for row in measured() if (row.what, row.model, row.case) == (what, model, case)]
    return sorted(rows, key=lambda row: row.batch)


def test_a_run_becomes_a_table(tmp_path: Path) -> None:
    path = tmp_path / "gpu.csv"
    step = {"ms per step": 0.64812, "decile": 0.64, "to": 0.67, "of limit": 0.4537}
    arm = {"ms per step": 1.0, "to base": 7.25, "from": 7.2, "to": 7.4}
    whole = {"device in prompts": 0.3, "device in decodes": 4.6, "device idle": 0.05}
    ours: dict[str, Any] = {"model": "0.6B"}
    lines: list[dict[str, Any]] = [
        {"gpu": "NVIDIA X", "torch": "2.11", "copy TB/s": 4.2},
        {"model": "0.6B", "attention": "fa3", "pages": 9},
        {"what": "warm-up", "seconds": 3.0},
        ours | {"batch": 1} | step,
        ours | {"what": "offline benchmark"} | whole,
        ours | {"what": "offline benchmark"} | dict.fromkeys(whole, 9.9),
        {"what": "kernels, batch 1", "ms per step": 0.6, "kinds": 3},
        {"kernel": "k", "us each": 1.0},
        ours | {"arm": "base", "batch": 64} | arm,
        ours | {"arm": "graphs off", "batch": 64} | arm,
        ours | {"ablated": "overlap=False", "metric": "itl", "batch": 64} | arm,
        {"model": "0.6B", "side": "transformers", "batch": 1, "ms per step": 61.0},
    ]
    four = [ours | {"arm": "base", "batch": 1} | arm, ours | {"arm": "awq", "batch": 1} | arm]
    lines = [{"part": "gpu"} | line for line in lines] + [{"part": "awq"} | line for line in four]
    table.write(path, [{"part": "host", "gpu": "no"}, *lines], date(2026, 11, 29))
    assert label(path).startswith("One NVIDIA X, 2026-11-29, torch 2.11")
    assert label(path).endswith("; minisgl bench gpu awq")
    m = "Qwen3-0.6B"
    assert measured(path) == [
        Measured("decode", m, "minisgl", 1, 0.6481, 0.64, 0.67, "ms", 0.4537),
        Measured("offline", m, "prompts", 256, 0.3, None, None, "s", None),
        Measured("offline", m, "decodes", 256, 4.6, None, None, "s", None),
        Measured("offline", m, "idle", 256, 0.05, None, None, "s", None),
        Measured("toggle", m, "graphs off", 64, 7.25, 7.2, 7.4, "ratio", None),
        Measured("ablation", m, "overlap=False: itl", 64, 7.25, 7.2, 7.4, "ratio", None),
        Measured("decode", m, "transformers", 1, 61.0, None, None, "ms", None),
        Measured("decode", m, "bfloat16", 1, 1.0, None, None, "ms", None),
        Measured("decode", m, "awq", 1, 1.0, None, None, "ms", None),
    ]
    with pytest.raises(ValueError, match="no table is written to .*: no GPU was measured"):
        table.write(path, [{"part": "gpu", "note": "left out"}], date(2026, 11, 29))


def short(*values: float | None) -> list[float]:
    """As the notes have them: three digits."""
    return [float(f"{value:.3g}") for value in values if value is not None]


@pytest.mark.parametrize("model", ["Qwen3-0.6B", "Qwen3-8B", "Qwen3-14B"])
def test_decode_steps_are_those_of_the_table(model: str) -> None:
    decode = re.search(rf"ms per step \(share.*?^\| {model} \|(.*?)$", RESULTS, re.S | re.M)
    assert decode is not None
    rows = of("decode", model, "minisgl")
    expected = [n for row in rows for n in (*short(row.value), round(100 * (row.limit_share or 0)))]
    assert len(expected) == 8 and numbers(decode[1]) == expected


def test_steps_of_transformers_are_those_of_the_table() -> None:
    theirs = line("transformers, SDPA, 0.6B / 8B").split("|")[2:5]
    sides = [of("decode", f"Qwen3-{size}", "transformers") for size in ("0.6B", "8B", "14B")]
    assert [numbers(cell) for cell in theirs] == [
        short(*(row.value for side in sides for row in side if row.batch == batch))
        for batch in (1, 16, 64)
    ]


@pytest.mark.parametrize(
    ("case", "start"),
    [("bfloat16", "bfloat16"), ("awq_marlin", "`awq_marlin`"), ("awq", "`awq` (Triton)")],
)
def test_steps_of_four_bits_are_those_of_the_table(case: str, start: str) -> None:
    rows = [row for row in measured(table.H200_AWQ) if row.case == case]
    assert numbers(line(start).removeprefix(f"| {start}")) == short(*(row.value for row in rows))


CASES = sorted({row.case for row in measured() if row.what == "toggle"} - {"triton"})


@pytest.mark.parametrize("case", CASES)
def test_toggles_are_those_of_the_table(case: str) -> None:
    rows = of("toggle", "Qwen3-0.6B", case)
    expected = [n for row in rows for n in short(row.value, row.low, row.high)]
    assert len(expected) == 9 and numbers(line(case).partition(case)[2]) == expected


def test_the_offline_benchmarks_parts_are_those_of_the_table() -> None:
    for model, start in (
        ("Qwen3-0.6B", "Qwen3-0.6B, three workloads"),
        ("Qwen3-8B", "Qwen3-8B"),
        ("Qwen3-14B", "Qwen3-14B"),
    ):
        parts = [of("offline", model, part)[0].value for part in ("prompts", "decodes", "idle")]
        lines = re.findall(rf"^\| {re.escape(start)} \|.*$", RESULTS, re.MULTILINE)
        assert numbers(lines[-1].rsplit("|", 2)[1]) == short(*parts)


def test_machine_and_date_stand_with_every_figure() -> None:
    assert "2026-11-30, one NVIDIA H200" in RESULTS
    assert label().startswith("One NVIDIA H200, 2026-11-30, torch 2.11.0+cu130")
    for picture in (
        stored.plot_toggles("graphs off", "overlap off"),
        stored.plot_decode(),
        stored.plot_offline(),
    ):
        assert label() in picture.alt and "RESULTS.md" not in picture.alt
    assert "graphs off: 1: 1.4 (1.33 to 1.63), 64: 2.79" in stored.plot_toggles("graphs off").alt
    assert "256: 17.9 ms (17.5 to 18.1), 66% of the limit" in stored.plot_decode().alt
    assert "Qwen3-8B: prompts 3.31 s, decodes 9.9 s, idle 0.0429 s" in stored.plot_offline().alt
    assert len(stored.to_frame()) == len(measured())
    four_bits = stored.plot_four_bits().alt
    assert four_bits is not None and label(table.H200_AWQ) in four_bits
    assert "awq_marlin: 1: 1.78 ms, 16: 3.38 ms, 64: 5.11 ms" in four_bits
    with pytest.raises(ValueError, match="nothing of that kind"):
        stored.plot_toggles("nothing")
