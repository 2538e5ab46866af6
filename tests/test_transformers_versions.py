"""The oldest supported transformers reads what we ship, and we agree with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

OLDEST = ["transformers==4.56.*", "huggingface-hub<1", "tokenizers>=0.22,<=0.23.0"]
TESTS = ["tests/test_tokens.py", "tests/tokenizer", "tests/models", "tests/tiny"]


@pytest.mark.slow
def test_tokens_and_templates_agree_with_the_oldest_transformers(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*pip, str(tmp_path), *OLDEST], check=True)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    code = "import transformers; assert transformers.__version__.startswith('4.56')"
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    command = [sys.executable, "-m", "pytest", "-q", "--no-cov", "-p", "no:cacheprovider", *TESTS]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
