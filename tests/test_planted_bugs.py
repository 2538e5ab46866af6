"""The list of planted bugs fits the code; with -m slow, the suite is seen to catch each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.planted_bugs import BUGS, ROOT, Bug, copy_of_the_project, is_caught


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_code_that_a_bug_replaces_stands_once(bug: Bug) -> None:
    assert (ROOT / bug.file).read_text().count(bug.right) == 1


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_suite_catches(bug: Bug, tmp_path: Path) -> None:
    copy_of_the_project(tmp_path)
    assert is_caught(bug, tmp_path)
