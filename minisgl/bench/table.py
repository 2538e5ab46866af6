"""What was measured on a GPU as a table, which ``minisgl bench gpu awq --table FILE`` writes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Final, NamedTuple

from minisgl.bench.files import write_whole

PARTS: Final = ("gpu", "awq")  # of the benchmark, that a table has rows of
H200: Final = Path(__file__).parent / "data" / "gpu_h200.csv"
H200_AWQ: Final = H200.with_name("awq_h200.csv")


class Measured(NamedTuple):
    """A number, where it is known with the least and the most of its repetitions.

    what: "decode" (ms per step), "toggle" (time per step to the default's), "ablation" (of whole
    runs, to the default's, with the bounds of an interval), "offline" (seconds of the device by
    what it computed). limit_share: the part of what the memory allows.
    """

    what: str
    model: str
    case: str
    batch: int
    value: float
    low: float | None
    high: float | None
    unit: str
    limit_share: float | None


def measured(path: Path = H200) -> list[Measured]:
    """Every row of a stored table."""
    lines = (line for line in path.read_text(encoding="utf-8").splitlines() if line[:1] != "#")

    def number(text: str) -> float | None:
        return float(text) if text else None

    return [
        Measured(
            *(row["what"], row["model"], row["case"], int(row["batch"]), float(row["value"])),
            *(number(row["low"]), number(row["high"]), row["unit"], number(row["limit_share"])),
        )
        for row in csv.DictReader(lines)
    ]


def label(path: Path = H200) -> str:
    """On what it was measured, when, and by which command."""
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")


def write(path: Path, lines: Iterable[Mapping[str, Any]], day: date) -> None:
    """Keep what ``bench.gpu.lines`` and ``bench.gpu_awq.lines`` said on that day.

    lines: each with its part of the benchmark. Raises ValueError if no GPU was measured.
    """
    lines = [line for line in lines if line["part"] in PARTS]
    gpu = next((line for line in lines if "gpu" in line), None)
    if gpu is None:
        raise ValueError(f"no table is written to {path}: no GPU was measured")
    about = f"One {gpu['gpu']}, {day}, torch {gpu['torch']}, bfloat16, random weights"
    parts = " ".join(dict.fromkeys(line["part"] for line in lines))
    text = io.StringIO()
    text.write(f"# {about}; minisgl bench {parts}\n# Notes: minisgl/bench/RESULTS.md\n")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(Measured._fields)
    for row in _rows(lines):
        table.writerow(f"{x:.4g}" if isinstance(x, float) else x for x in row)
    write_whole(path, text.getvalue())


def _rows(lines: Iterable[Mapping[str, Any]]) -> Iterator[Measured]:
    whole = set[str]()  # models whose offline benchmark is there: its first run counts
    for line in lines:
        model, batch = f"Qwen3-{line.get('model')}", line.get("batch", 0)
        if line.get("what") == "offline benchmark" and model not in whole:
            whole.add(model)
            for part in ("prompts", "decodes", "idle"):
                seconds = line["device idle" if part == "idle" else f"device in {part}"]
                yield Measured("offline", model, part, 256, seconds, None, None, "s", None)
        elif "arm" in line and line["part"] == "awq":
            took = line["ms per step"]
            case = "bfloat16" if line["arm"] == "base" else line["arm"]
            yield Measured("decode", model, case, batch, took, None, None, "ms", None)
        elif "ablated" in line:
            span, case = (line["from"], line["to"]), f"{line['ablated']}: {line['metric']}"
            yield Measured("ablation", model, case, batch, line["to base"], *span, "ratio", None)
        elif "arm" in line and line["arm"] != "base":
            span = line["from"], line["to"]
            yield Measured(
                "toggle", model, line["arm"], batch, line["to base"], *span, "ratio", None
            )
        elif "of limit" in line and "ms per step" in line:
            took, span = line["ms per step"], (line["decile"], line["to"])
            yield Measured("decode", model, "minisgl", batch, took, *span, "ms", line["of limit"])
        elif "side" in line and "ms per step" in line:
            took = line["ms per step"]
            yield Measured("decode", model, line["side"], batch, took, None, None, "ms", None)
