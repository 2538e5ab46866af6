"""The command line: ``minisgl`` is ``python -m minisgl``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, NoReturn

from minisgl import lab
from minisgl.config import AUTO, EngineConfig
from minisgl.server.options import ServerOptions


def _whole_number(text: str) -> int | str:
    return text if text == AUTO else int(text)


def _add_option(group: argparse._ArgumentGroup, option: Field[Any]) -> None:
    flag, doc = "--" + option.name.replace("_", "-"), option.metadata["doc"].replace("%", "%%")
    settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"{doc} ({option.default})"}
    if isinstance(option.default, bool) or True in option.metadata["choices"]:
        settings["action"] = argparse.BooleanOptionalAction
    elif option.metadata["choices"]:
        settings["choices"] = [name for name in option.metadata["choices"] if name is not None]
    else:
        settings |= {"type": _whole_number, "metavar": "N"}
    group.add_argument(flag, **settings)


def _add_server_option(group: argparse._ArgumentGroup, option: Field[Any]) -> None:
    doc, default = option.metadata["doc"].replace("%", "%%"), option.default
    settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"{doc} ({default})"}
    if isinstance(default, bool):
        settings["action"] = "store_true"
    else:
        kind = str if default is None or isinstance(default, str) else type(default)
        settings |= {"type": kind, "metavar": option.metadata["metavar"]}
    flag = option.metadata["flag"] or option.name
    group.add_argument("--" + flag.replace("_", "-"), dest=option.name, **settings)


def parser() -> argparse.ArgumentParser:
    """Every command and option; the engine's options are the fields of ``EngineConfig``."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--model",
        "--model-path",
        default=argparse.SUPPRESS,
        help="tiny (the embedded model, the default), a checkpoint's folder or a Hugging Face id",
    )
    engine = common.add_argument_group("engine")
    for option in fields(EngineConfig):
        if option.name != "record":  # a server's --record names a file
            _add_option(engine, option)

    served = argparse.ArgumentParser(add_help=False)
    serving = served.add_argument_group("serving")
    for option in ServerOptions.describe():
        _add_server_option(serving, option)
    serving.add_argument(
        "--shell",
        action="store_true",
        default=argparse.SUPPRESS,
        help="chat in this terminal instead",
    )
    top = argparse.ArgumentParser(
        prog="minisgl",
        description="An LLM inference engine that can be stepped. Without a command: serve.",
        parents=[common, served],
    )
    commands = top.add_subparsers(dest="command", metavar="{serve,demo,lab,bench}")
    commands.add_parser(
        "serve",
        parents=[common, served],
        help="an OpenAI-compatible server (what runs without a command)",
        description="Serve a model over HTTP, as OpenAI's API does; admission is optimistic.",
    )
    demo = commands.add_parser(
        "demo",
        parents=[common],
        help="ten requests through the embedded model, one batch at a time",
        description="Ten requests, one batch at a time; then the same with one toggle off each.",
    )
    demo.add_argument(
        "--picture", metavar="FILE", help="also draw who ran when, as .svg, .png or .pdf"
    )
    notebooks = commands.add_parser(
        "lab",
        help="JupyterLab on the tutorials",
        description="Open JupyterLab on the tutorials, or on FOLDER.",
        usage="minisgl lab [option ...] [FOLDER] [-- WORD ...]",
        epilog="What follows -- goes to jupyter lab. On a remote machine: minisgl lab "
        "--no-browser; then, where the browser is, ssh -N -L 8888:127.0.0.1:8888 MACHINE, and "
        "open the address that minisgl lab printed there (if its port is another: that for 8888).",
    )
    notebooks.add_argument("folder", nargs="?", metavar="FOLDER", help="notebooks (the tutorials)")
    notebooks.add_argument(
        "--no-browser", dest="browser", action="store_false", help="only print the address"
    )
    address = f"address to listen at ({lab.LOOPBACK})"
    notebooks.add_argument("--ip", default=lab.LOOPBACK, help=address)
    port = "port to listen at (8888, or the next free one)"
    notebooks.add_argument("--port", type=int, metavar="N", help=port)
    notebooks.add_argument("--token", metavar="WORD", help="lets a browser in (a random one)")
    notebooks.add_argument("--allow-root", action="store_true", help="serve although you are root")
    bench = commands.add_parser(
        "bench",
        help="speed against peers, and what the host costs",
        description="Sides run in turn on one thread: read the ratios. Parts: cpu and large are "
        "against transformers (large takes 10 GiB), host is plan to book, toggles is on against "
        "off, inspector is drawing in a browser, gpu is one NVIDIA GPU against its memory.",
    )
    bench.add_argument(
        "parts", nargs="*", metavar="PART", help="cpu, large, host, toggles, inspector, gpu (all)"
    )
    bench.add_argument("--quick", action="store_true", help="fewer rounds and sizes")
    bench.add_argument("--json", metavar="FILE", help="write the results there, too")
    return top


def config_of(arguments: argparse.Namespace) -> EngineConfig:
    """The configuration that the given engine options make."""
    given = vars(arguments)
    names = [option.name for option in fields(EngineConfig) if option.name in given]
    return EngineConfig(**{name: given[name] for name in names})


def server_options_of(
    arguments: argparse.Namespace, environment: Mapping[str, str]
) -> ServerOptions:
    """The server's options: what was given, else what the environment says of keys."""
    given = vars(arguments)
    names = [option.name for option in ServerOptions.describe() if option.name in given]
    chosen = {name: given[name] for name in names}
    for name in ("api_key", "admin_key"):
        if key := environment.get(f"MINISGL_{name.upper()}"):
            chosen.setdefault(name, key)
    return ServerOptions(**chosen)


def _serve(model: str, config: EngineConfig, arguments: argparse.Namespace) -> int:
    options = server_options_of(arguments, os.environ)
    try:
        if getattr(arguments, "shell", False):
            from minisgl.server.shell import run

            return run(model, config, os.environ)
        from minisgl.server.launch import serve
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"serving needs the package {error.name}: pip install 'minisgl[serve]'"
        ) from error
    if "admission" not in arguments:
        config = config.but(admission="optimistic")
    if "history" not in arguments:
        config = config.but(record=False)  # a server has no end: what it did is in --record
    return serve(model, config, options)


def _lab(given: argparse.Namespace, further: Sequence[str]) -> NoReturn:
    further = [*(["--allow-root"] if given.allow_root else []), *further]
    words = lab.command(
        given.folder, browser=given.browser, ip=given.ip, port=given.port, further=further
    )
    lab.start(words, given.token)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 2 if it cannot be done as asked, after saying why."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    further = words[end + 1 :]
    arguments = parser().parse_args(words[:end])
    model = getattr(arguments, "model", "tiny")
    try:
        config = config_of(arguments)
        if further and arguments.command != "lab":
            raise ValueError(f"only minisgl lab takes what follows --: {' '.join(further)}")
        if arguments.command in (None, "serve"):
            return _serve(model, config, arguments)
        if arguments.command == "lab":
            _lab(arguments, further)
        if arguments.command == "bench":
            from minisgl.bench import report

            for line in report.run(tuple(arguments.parts), arguments.quick, arguments.json):
                print(line, flush=True)
            return 0
        from minisgl import demo  # torch takes seconds to import; --help should not

        for line in demo.run(model, config, picture=arguments.picture):
            print(line, flush=True)
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        print(f"minisgl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
