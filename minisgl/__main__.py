"""The command line: ``minisgl`` is ``python -m minisgl``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
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
    commands = top.add_subparsers(dest="command", metavar="{serve,demo,lab,bench,quantize}")
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
        "off, inspector is drawing in a browser, gpu is one NVIDIA GPU against its memory, awq is "
        "four bits against sixteen there, serving is the server.",
    )
    bench.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help="cpu, large, host, toggles, inspector, gpu, awq, serving (all)",
    )
    bench.add_argument("--quick", action="store_true", help="fewer rounds and sizes")
    bench.add_argument(
        "--server",
        action="append",
        default=[],
        metavar="COMMAND",
        help="serving beside this server alone: words with {port} and {model} in them; repeatable",
    )
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    tables = "of the parts gpu and awq: the figures that notebooks show, as CSV"
    bench.add_argument("--table", type=Path, metavar="FILE", help=tables)
    timelines = "instead: run CUDA graphs and overlap on and off, write their timelines there"
    bench.add_argument("--timeline", type=Path, metavar="FILE", help=timelines)
    quantize = commands.add_parser(
        "quantize",
        help="make a checkpoint of four-bit weights (AWQ)",
        description="Write MODEL to DIR with the matrices of its layers in four bits, fitted to a "
        "calibration text (AWQ, Lin et al. 2023). Interrupted, the same command goes on.",
    )
    quantize.add_argument("model", metavar="MODEL", help="tiny, a folder or a Hugging Face id")
    quantize.add_argument("--out", required=True, type=Path, metavar="DIR", help="a new folder")
    text = "text like what the model is for (what our own generator writes)"
    quantize.add_argument("--calibration", type=Path, metavar="FILE", help=text)
    groups = "inputs that share a scale: 128, 64, 32, or -1 for all (128)"
    quantize.add_argument("--group-size", type=int, default=128, metavar="N", help=groups)
    samples = "pieces of the text (32)"
    quantize.add_argument("--samples", type=int, default=32, metavar="N", help=samples)
    length = "tokens in a piece (512)"
    quantize.add_argument("--length", type=int, default=512, metavar="N", help=length)
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


def _quantize(model: str, given: argparse.Namespace) -> Iterator[str]:
    from minisgl import calibrate

    for name in ("samples", "length"):
        if getattr(given, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(given, name)}")
    if given.group_size < 1 and given.group_size != -1:
        raise ValueError(f"--group-size must be at least 1, or -1, got {given.group_size}")
    group = None if given.group_size < 0 else given.group_size
    return calibrate.run(model, given.out, given.calibration, group, given.samples, given.length)


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
        if arguments.command == "quantize":
            for line in _quantize(model, arguments):
                print(line, flush=True)
            return 0
        if arguments.command == "bench":
            from minisgl.bench import report, timeline

            if arguments.timeline is not None:
                for line in timeline.record(arguments.timeline):
                    print(line, flush=True)
                return 0
            for line in report.run(
                tuple(arguments.parts),
                arguments.quick,
                arguments.json,
                arguments.server,
                arguments.table,
            ):
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
