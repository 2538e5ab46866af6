"""What the README shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_five_lines_run_and_print_what_their_comment_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    step, story = capsys.readouterr().out.strip().splitlines()
    (said,) = re.findall(r"one batch: (step 0: .*)", code)
    assert step == said and story.startswith("Once upon a time there was a clever fox named Mia.")


def test_every_file_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_two_commands_are_there_and_each_does_all() -> None:
    assert "pip install -e . && minisgl demo\n" in README
    assert 'pip install -e ".[dev]" && pytest\n' in README
