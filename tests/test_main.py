"""The command line: what parses, what is refused and how."""

from __future__ import annotations

import subprocess
import sys

import pytest

from minisgl.__main__ import config_of, main, parser, server_options_of
from minisgl.config import EngineConfig
from minisgl.server.options import ServerOptions


def test_the_command_form_of_the_reference_parses() -> None:
    words = ["--model", "Qwen/Qwen3-0.6B", "--shell", "--tp", "4", "--port", "8000"]
    given = parser().parse_args(words)
    assert (given.model, given.shell, given.tp, given.port) == ("Qwen/Qwen3-0.6B", True, 4, 8000)


def test_server_options_come_from_flags_and_keys_from_the_environment_too() -> None:
    environment = {"MINISGL_API_KEY": "open", "MINISGL_ADMIN_KEY": "sesame"}
    for words in (["--port", "0", "--api-key", "k"], ["serve", "--port", "0", "--api-key", "k"]):
        options = server_options_of(parser().parse_args(words), environment)
        assert options == ServerOptions(port=0, api_key="k", admin_key="sesame")


def test_a_recording_is_a_file_and_not_the_engines_toggle() -> None:
    given = parser().parse_args(["serve", "--record", "here.jsonl"])
    assert server_options_of(given, {}).record_to == "here.jsonl"
    assert config_of(given) == EngineConfig()


def test_every_engine_option_is_a_flag() -> None:
    words = ["demo", "--no-overlap", "--page-size", "4", "--policy", "mixed", "--num-pages", "auto"]
    config = config_of(parser().parse_args(words))
    assert config == EngineConfig(overlap=False, page_size=4, policy="mixed")


def test_options_may_stand_before_the_command() -> None:
    given = parser().parse_args(["--model", "folder", "--page-size", "4", "demo"])
    assert given.model == "folder" and config_of(given).page_size == 4


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["demo", "--page-size", "0"], "page_size must be at least 1, got 0"),
        (["demo", "--model", "no/such/folder"], "no/such/folder"),
        (["serve", "--port", "65536"], "port must be at most 65535, got 65536"),
        (["serve", "--max-waiting", "0"], "max_waiting must be at least 1, got 0"),
        (["--api-key", ""], "api_key must not be empty"),
        (["serve", "--port", "0", "--model", "no/such/folder"], "no/such/folder"),
        (["demo", "--tp", "3"], "tp=3 was asked; the model's 4 attention heads"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_exit_code_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said


def test_an_unknown_flag_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as error:
        main(["--no-such-flag"])
    assert error.value.code == 2


def test_help_needs_no_torch_and_is_quick() -> None:
    code = "import sys; from minisgl.__main__ import main\ntry: main(['--help'])\n"
    code += "except SystemExit: pass\nprint('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False" and "--chunked-prefill" in run.stdout
