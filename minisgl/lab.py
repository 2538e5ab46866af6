"""JupyterLab on the tutorials: what it needs, where they lie, the command that opens them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

# What the tutorials import beyond minisgl's own needs: the extra [lab], by import name.
NEEDED = ("jupyterlab", "ipywidgets", "anywidget", "matplotlib", "pandas")
LOOPBACK = "127.0.0.1"
_CHECKOUT = Path(__file__).resolve().parent.parent  # if minisgl is installed from one


def command(
    folder: str | None = None,
    *,
    browser: bool = True,
    ip: str = LOOPBACK,
    port: int | None = None,
    further: Sequence[str] = (),
) -> list[str]:
    """The command line that serves a folder of notebooks with the Python that runs this.

    folder: None opens the tutorials of the checkout and serves the checkout, so that what they
    link to can be opened too. The files themselves are opened, not copies: what is saved is kept.
    port: None leaves it to JupyterLab (8888, or the next free one). further: for jupyter lab, last.
    Raises ModuleNotFoundError, which says what to install, if something NEEDED is missing, and
    FileNotFoundError or NotADirectoryError, if there is nothing to open.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"lab needs {', '.join(missing)}, not installed for {sys.executable}; "
            f"install what the notebooks need: {_install()}"
        )
    if folder is None:
        root, page = _CHECKOUT, "/lab/tree/tutorials"
        if not _has_tutorials():
            raise FileNotFoundError(
                f"there are no tutorials beside {Path(__file__).parent}: they lie in minisgl's "
                'repository, not in the package. In a checkout of it: pip install -e ".[lab]" && '
                "minisgl lab. Or name a folder of notebooks: minisgl lab FOLDER"
            )
    else:
        root, page = Path(folder).resolve(), "/lab"
        if not root.exists():
            raise FileNotFoundError(f"there is no folder {root}; minisgl lab opens the tutorials")
        if not root.is_dir():
            raise NotADirectoryError(
                f"{root} is no folder; minisgl lab {root.parent} opens the one it lies in"
            )
    words = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}"]
    words += [f"--LabApp.default_url={page}", f"--ServerApp.ip={ip}"]
    words += [] if port is None else [f"--ServerApp.port={port}"]
    words += [] if browser else ["--no-browser"]
    return [*words, *further]


def start(words: Sequence[str], token: str | None = None) -> NoReturn:
    """Become the process that ``command`` describes: signals, terminal and exit code are its own.

    token: what a browser must know to get in; it travels in the environment, since a command line
    can be read by everyone on the machine. None or empty: JupyterLab makes one up and prints it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(words[0], list(words), os.environ | ({"JUPYTER_TOKEN": token} if token else {}))


def _has_tutorials() -> bool:
    return any((_CHECKOUT / "tutorials").glob("*.ipynb"))


def _install() -> str:
    what = f"-e '{_CHECKOUT}[lab]'" if _has_tutorials() else "'minisgl[lab]'"
    return f"pip install {what}"
