"""``minisgl quantize``: from text to a folder that loads, with numbers on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import minisgl
from minisgl.__main__ import main
from minisgl.calibrate import calibration
from minisgl.models.hub import locate
from minisgl.tokenizer import load_codec
from tests.quantize.test_folder import made


def test_pieces_are_spread_over_the_whole_text(tmp_path: Path) -> None:
    codec = load_codec(locate("tiny"))
    assert codec is not None
    text = tmp_path / "text"
    text.write_text(" ".join(str(n) for n in range(400)))
    ids = codec.encode(text.read_text())
    pieces = calibration(codec, text, 5, 60)
    assert pieces.shape == (5, 60)
    assert pieces[0].tolist() == ids[:60]
    last = next(i for i in range(len(ids)) if ids[i : i + 60] == pieces[4].tolist())
    assert len(ids) - 64 <= last <= len(ids) - 60
    assert len(calibration(codec, text, 10_000, 60)) == len(ids) // 60, "none is there twice"
    with pytest.raises(ValueError, match=f"makes {len(ids)} tokens and a piece has {len(ids) + 1}"):
        calibration(codec, text, 1, len(ids) + 1)


def test_without_a_text_our_generator_writes_one_always_the_same() -> None:
    codec = load_codec(locate("tiny"))
    assert codec is not None
    pieces = calibration(codec, None, 3, 100)
    assert pieces.shape == (3, 100)
    assert torch.equal(pieces, calibration(codec, None, 3, 100))
    assert "<|im_start|>" not in codec.decode(pieces[0].tolist())


def test_the_command_makes_a_model_that_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["quantize", "tiny", "--out", str(out), "--group-size", "64"]
    assert main([*command, "--samples", "8", "--length", "128"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny: 8 pieces of 128 tokens from minisgl's own")
    assert lines[-2:] == ["weights: 2.6 MB, before 7.7 MB", f"minisgl --model {out}"]
    assert lines[-3].split()[0] == "down_proj"
    said = []
    for model in ("tiny", out):
        with minisgl.load(model) as engine:
            asked = engine.add([{"role": "user", "content": "What is 7 plus 8?"}])
            engine.run()
            said.append(asked.text)
    assert said[0] == said[1] == "7 + 8 = 15."
    assert main(command) == 2
    assert "holds config.json and 4 more; give a new folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("further", "says"),
    [
        (["--group-size", "0"], "--group-size must be at least 1, or -1, got 0"),
        (["--samples", "0"], "--samples must be at least 1, got 0"),
        (["--length", "5000"], "sequences of 2 to 4096 tokens; it measures"),
        (["--group-size", "100"], "hidden_size is 256, no whole groups of 100"),
        (["--calibration", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_what_cannot_be_done_is_said(
    further: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", "tiny", "--out", str(tmp_path / "out"), *further]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_cannot_be_calibrated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(made("qwen2").folder), "--out", str(tmp_path / "out")]) == 2
    assert "has no tokenizer files, which calibration needs" in capsys.readouterr().err
