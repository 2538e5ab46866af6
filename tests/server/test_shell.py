"""The shell: what it answers, what its commands do, and that Ctrl-C ends an answer alone."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from minisgl.core import SamplingParams
from minisgl.llm import LLM
from minisgl.server.shell import Conversation, first_sampling, talk

GREEDY = SamplingParams(max_tokens=60)


@pytest.fixture
def conversation(offline: LLM) -> Conversation:
    return Conversation(offline.engine, GREEDY)


def run(conversation: Conversation, *lines: str | BaseException) -> str:
    """What is said to these lines; an exception among them is raised where a line is read."""
    todo, said = iter(lines), list[str]()

    def ask(prompt: str) -> str:
        line = next(todo, None)
        if line is None:
            raise EOFError
        if isinstance(line, BaseException):
            raise line
        return line

    talk(conversation, ask, said.append)
    return "".join(said)


def test_answers_are_the_models_and_the_conversation_goes_on(
    conversation: Conversation, offline: LLM
) -> None:
    said = run(conversation, "Tell me a story about Nora.", "", "Who is Nora?")
    messages: list[dict[str, str]] = []
    for text in ("Tell me a story about Nora.", "Who is Nora?"):
        messages.append({"role": "user", "content": text})
        (output,) = offline.chat(messages, GREEDY, progress=False)
        messages.append({"role": "assistant", "content": output.text or ""})
    assert said == f"{messages[1]['content']}\n{messages[3]['content']}\n"
    assert conversation.messages == messages


def test_commands(conversation: Conversation, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    lines = ["/stats", "/set temperature 0.7", "/set top_k 5", "/set stop kite", "/set seed 3"]
    said = run(conversation, *lines, "Who is Mia?", "/stats", f"/save {path}", "/reset").split("\n")
    assert said[0] == "nothing was asked yet"
    assert said[1:5] == ["temperature = 0.7", "top_k = 5", "stop = ('kite',)", "seed = 3"]
    assert re.search(r"prompt 12 tokens, 0 of them cached; answer \d+ tokens \(\w+\)", said[6])
    assert said[7] == f"2 messages written to {path}" and said[8] == "forgotten"
    assert [m["role"] for m in json.loads(path.read_text())["messages"]] == ["user", "assistant"]
    assert conversation.messages == []
    assert conversation.sampling == SamplingParams(
        temperature=0.7, top_k=5, stop="kite", seed=3, max_tokens=60
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/dance", "'/dance' is no command; /help shows them"),
        ("/set heat 3", "there is no 'heat'; there are temperature"),
        ("/set temperature hot", "temperature must be a number"),
        ("/set temperature -1", "temperature must be from 0 to 100"),
        ("/set temperature", "is no command"),
        ("/set temperature __import__('os')", "temperature must be a number"),
        ("/save /no/such/folder/x", "cannot write /no/such/folder/x: No such file"),
        ("/save", "is no command"),
        ("/help", "/reset              forget the conversation"),
        ("/set", "max_tokens = 60"),
    ],
)
def test_a_command_that_cannot_be_done_says_why(
    line: str, says: str, conversation: Conversation
) -> None:
    assert says in run(conversation, line)
    assert conversation.sampling == GREEDY


def test_a_conversation_that_no_longer_fits_is_told_and_kept(conversation: Conversation) -> None:
    said = run(conversation, "word " * 5000, "/stats")
    assert "leaves no room for output in a context of 4096" in said
    assert conversation.messages == []


def test_an_interrupted_answer_is_kept_as_far_as_it_was_given(
    conversation: Conversation, offline: LLM
) -> None:
    pieces: Any = conversation.answer("Tell me a story about Nora.")
    given = [next(pieces) for _ in range(5)]
    with pytest.raises(KeyboardInterrupt):
        pieces.throw(KeyboardInterrupt())
    assert conversation.messages[-1] == {"role": "assistant", "content": "".join(given)}
    offline.engine.run()
    assert not offline.engine.busy, "the request was aborted"
    assert run(conversation, KeyboardInterrupt(), "/reset") == "forgotten\n"


def test_the_environment_says_how_to_sample_at_first() -> None:
    assert first_sampling({}).temperature == 0.6
    given = {"MINISGL_SHELL_TEMPERATURE": "0", "MINISGL_SHELL_TOP_K": "3"}
    given["MINISGL_SHELL_TOP_P"] = "0.5"
    sampling = first_sampling(given)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.0, 3, 0.5)
    for name, wrong in (("TEMPERATURE", "hot"), ("TOP_K", "1.5"), ("TOP_P", "2")):
        with pytest.raises(ValueError, match=f"MINISGL_SHELL_{name} is '{wrong}'"):
            first_sampling({f"MINISGL_SHELL_{name}": wrong})


class Terminal:
    """``minisgl --shell`` in a terminal of its own."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        environment: Any = {**os.environ, "TERM": "xterm", "MINISGL_SHELL_TEMPERATURE": "0"}
        environment["PROMPT_TOOLKIT_NO_CPR"] = "1"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "minisgl", "--shell"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(slave)
        self.said, self._read = "", 0

    def write(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str) -> None:
        """Read until this stands after what was waited for before."""
        end = time.monotonic() + 60
        while (found := self.said.find(text, self._read)) < 0:
            assert time.monotonic() < end, self.said
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self.said += os.read(self._master, 1 << 14).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"it ended: {self.said}") from None
        self._read = found + len(text)


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_in_a_terminal_ctrl_c_ends_the_answer_and_not_the_shell() -> None:
    terminal = Terminal()
    try:
        terminal.wait_for("/help tells more")
        terminal.wait_for(">")
        terminal.write("/set ignore_eos True\r")
        terminal.wait_for("ignore_eos = True")
        terminal.write("Tell me a story about Nora.\r")
        terminal.wait_for("Once upon a time")
        terminal.write("\x03")
        terminal.wait_for("(stopped)")
        terminal.write("/stats\r")
        terminal.wait_for("(abort)")
        terminal.write("/set max_tokens 5\r")
        terminal.wait_for("max_tokens = 5")
        terminal.write("/reset\r")
        terminal.wait_for("forgotten")
        terminal.write("Tell me a story about Mia.\r")
        terminal.wait_for("Once upon a time there")
        terminal.wait_for(">")
        terminal.write("\x04")
        assert terminal.process.wait(60) == 0
        assert "Traceback" not in terminal.said
    finally:
        terminal.process.kill()
        terminal.process.wait()
