"""A conversation in a terminal; the engine runs in this process."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter

from minisgl.build import load
from minisgl.config import EngineConfig
from minisgl.core import Request, SamplingParams
from minisgl.engine.engine import Engine
from minisgl.llm import stream

_ALL: Final = 2**31 - 1  # tokens: as many as the context leaves
_DEFAULTS: Final = {"temperature": 0.6, "top_k": -1, "top_p": 1.0}
_HELP: Final = """\
/reset              forget the conversation
/stats              tokens and speed of the last answer
/set NAME VALUE     how it is sampled, such as /set temperature 0.7; /set alone shows all
/save FILE          write the conversation as JSON
/help               these lines
/quit               end, as Ctrl-D does; Ctrl-C stops an answer"""

Say = Callable[[str], None]


def run(model: str, config: EngineConfig, environment: Mapping[str, str]) -> int:
    """Talk until the end of input; returns the exit code.

    environment: MINISGL_SHELL_TEMPERATURE, _TOP_K and _TOP_P say how to sample at first.
    Raises ValueError for a value of theirs that is none.
    """
    sampling = first_sampling(environment)
    with load(model, config.but(record=False)) as engine:
        words = WordCompleter([line.split()[0] for line in _HELP.splitlines()], sentence=True)
        session: PromptSession[str] = PromptSession(completer=words, complete_while_typing=False)
        print(f"minisgl: {model}, context {engine.config.limits.max_seq_len}; /help tells more")
        talk(
            Conversation(engine, sampling),
            session.prompt,
            lambda text: print(text, end="", flush=True),
        )
    return 0


def first_sampling(environment: Mapping[str, str]) -> SamplingParams:
    """How the shell samples before anybody says /set. Raises ValueError naming the variable."""
    chosen: dict[str, Any] = {}
    for name, default in _DEFAULTS.items():
        variable = f"MINISGL_SHELL_{name.upper()}"
        text = environment.get(variable, "")
        try:
            chosen[name] = type(default)(text) if text else default
            SamplingParams(**{name: chosen[name]})
        except ValueError as error:
            raise ValueError(f"{variable} is {text!r}: {error}") from error
    return SamplingParams(**chosen, max_tokens=_ALL)


def talk(conversation: Conversation, ask: Callable[[str], str], say: Say) -> None:
    """Read and answer line by line, until the end of input or /quit.

    An interrupt ends the answer, or the line that is being written.
    """
    while True:
        try:
            line = ask("> ").strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if line == "/quit":
            return
        if line.startswith("/"):
            say(conversation.command(line) + "\n")
        elif line:
            try:
                for piece in conversation.answer(line):
                    say(piece)
                say("\n")
            except KeyboardInterrupt:
                say(" (stopped)\n")
            except (TypeError, ValueError) as error:
                say(f"{error}\n")


class Conversation:
    """What was said so far, and how the answers are sampled."""

    def __init__(self, engine: Engine, sampling: SamplingParams) -> None:
        self.messages: list[dict[str, str]] = []
        self.sampling = sampling
        self._engine = engine
        self._last: Request | None = None
        self._begun = self._first = self._ended = 0.0

    def answer(self, text: str) -> Iterator[str]:
        """Say something; the answer comes in pieces. What was given of it before an interrupt is
        kept; with nothing given, nothing was said.

        Raises ValueError if the conversation does not fit into the context any more.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        self._begun, self._first = perf_counter(), 0.0
        self._last = self._engine.add(asked, self.sampling)
        said = ""
        try:
            for piece in stream(self._engine, self._last):
                self._first = self._first or perf_counter()
                said += piece.text or ""
                yield piece.text or ""
        finally:
            self._ended = perf_counter()
            if said:
                self.messages = [*asked, {"role": "assistant", "content": said}]
        if self._last.error is not None:
            yield f"(failed: {self._last.error})"

    def command(self, line: str) -> str:
        """Carry out a line that begins with a slash; returns what there is to say."""
        match line.split(maxsplit=2):
            case ["/reset"]:
                self.messages = []
                return "forgotten"
            case ["/stats"]:
                return self._stats()
            case ["/set"]:
                return "\n".join(
                    f"{field.name} = {getattr(self.sampling, field.name)!r}"
                    for field in fields(self.sampling)
                )
            case ["/set", name, value]:
                return self._set(name, value)
            case ["/save", *words] if words:
                return self._save(Path(" ".join(words)).expanduser())
            case ["/help"]:
                return _HELP
        return f"{line!r} is no command; /help shows them"

    def _set(self, name: str, text: str) -> str:
        names = [field.name for field in fields(self.sampling)]
        if name not in names:
            return f"there is no {name!r}; there are {', '.join(names)}"
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            value = text  # a stop string need have no quotes
        try:
            self.sampling = replace(self.sampling, **{name: value})
        except (TypeError, ValueError) as error:
            return str(error)
        return f"{name} = {getattr(self.sampling, name)!r}"

    def _save(self, path: Path) -> str:
        try:
            with path.open("x", encoding="utf-8") as out:
                json.dump({"messages": self.messages}, out, ensure_ascii=False, indent=1)
        except OSError as error:
            return f"cannot write {path}: {error.strerror}"
        return f"{len(self.messages)} messages written to {path}"

    def _stats(self) -> str:
        request = self._last
        if request is None:
            return "nothing was asked yet"
        made = len(request.output)
        first = (self._first or self._ended) - self._begun
        speed = (made - 1) / max(1e-9, self._ended - self._first) if made > 1 else 0.0
        return (
            f"prompt {request.prompt_len} tokens, {request.cached} of them cached; answer {made} "
            f"tokens ({request.finish}); first after {first * 1e3:.0f} ms, then {speed:.0f} "
            f"tokens/s"
        )
