"""``minisgl lab``: a real server that starts, lets in who knows the token, and ends; and what is
said where there is nothing to open."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.error import HTTPError

import pytest
from packaging.requirements import Requirement

from minisgl import lab
from minisgl.__main__ import main
from tests.lab_server import TOKEN, Server, serve
from tests.test_project import EXTRAS, ROOT


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def wait_for(condition: Callable[[], bool], otherwise: str) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, otherwise
        time.sleep(0.1)


def port_of_a_new_kernel(server: Server, runtime: Path) -> int:
    """Where the heart of a kernel, started now, beats."""
    identity = server.ask("/api/kernels", method="POST")["id"]
    connection = json.loads((runtime / f"kernel-{identity}.json").read_text())
    return int(connection["hb_port"])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_the_folder_to_who_knows_the_token_and_ends_with_its_kernels(
    tmp_path: Path, how: signal.Signals
) -> None:
    root = tmp_path / "books"
    root.mkdir()
    (root / "one.ipynb").write_text("{}")
    with serve(root, tmp_path / "private") as server:
        listed = server.ask("/api/contents")
        assert [entry["name"] for entry in listed["content"]] == ["one.ipynb"]
        for wrong in (None, "another"):
            with pytest.raises(HTTPError) as refused:
                server.ask("/api/contents", token=wrong)
            assert refused.value.code == 403
        port = port_of_a_new_kernel(server, tmp_path / "private" / "runtime")
        wait_for(lambda: listens(port), "the kernel does not start")
        server.process.send_signal(how)
        server.process.wait(30)
        # at once, or when it notices, in a second, that its server is gone
        wait_for(lambda: not listens(port), "the kernel outlives its server")
    assert f"Serving notebooks from local directory: {root}" in server.log


def test_further_words_come_last_so_that_they_win(tmp_path: Path) -> None:
    words = lab.command(str(tmp_path), browser=False, port=9000, further=["--debug", "--ip=::1"])
    assert words[:3] == [sys.executable, "-m", "jupyterlab"]
    assert "--ServerApp.port=9000" in words
    assert words[-3:] == ["--no-browser", "--debug", "--ip=::1"]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_the_token_is_not_on_the_servers_command_line(tmp_path: Path) -> None:
    with serve(tmp_path, tmp_path / "private") as server:
        words = Path(f"/proc/{server.process.pid}/cmdline").read_text()
    assert "jupyterlab" in words and TOKEN not in words


def test_without_a_folder_the_tutorials_of_the_checkout_are_opened() -> None:
    words = lab.command()
    assert f"--ServerApp.root_dir={ROOT}" in words
    assert "--LabApp.default_url=/lab/tree/tutorials" in words
    assert "--ServerApp.ip=127.0.0.1" in words, "only this machine may reach it"
    assert "--no-browser" not in words and "--ServerApp.port" not in " ".join(words)


def test_what_is_needed_is_what_the_lab_extra_installs() -> None:
    assert {Requirement(line).name for line in EXTRAS["lab"]} == set(lab.NEEDED)


def said(words: Sequence[str], *, absent: Sequence[str] = (), folder: Path = ROOT) -> str:
    """What ``minisgl lab`` says as it refuses, from the package in ``folder``, where the packages
    ``absent`` cannot be imported."""
    code = f"import sys\nfor name in {list(absent)}: sys.modules[name] = None\n"
    code += f"from minisgl.__main__ import main\nsys.exit(main({['lab', *words]}))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout) == (2, ""), run.stderr
    assert run.stderr.startswith("minisgl: ") and run.stderr.count("\n") == 1
    return run.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as a wheel leaves it: no tutorials beside it."""
    folder = tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT / "minisgl", folder / "minisgl")
    return folder


@pytest.mark.parametrize("name", lab.NEEDED)
def test_each_missing_package_is_named_with_what_installs_it(name: str) -> None:
    assert said([], absent=[name]) == (
        f"minisgl: lab needs {name}, not installed for {sys.executable}; "
        f"install what the notebooks need: pip install -e '{ROOT}[lab]'\n"
    )


def test_all_missing_packages_are_named_at_once(installed: Path) -> None:
    sentence = said(["."], absent=["pandas", "jupyterlab"], folder=installed)
    assert "lab needs jupyterlab, pandas, not" in sentence
    assert sentence.endswith("pip install 'minisgl[lab]'\n")


def test_without_a_checkout_it_says_where_the_tutorials_are(installed: Path) -> None:
    sentence = said([], folder=installed)
    assert f"no tutorials beside {installed / 'minisgl'}" in sentence
    assert "repository" in sentence and "minisgl lab FOLDER" in sentence


def test_no_other_command_takes_words_for_jupyter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--", "--debug"]) == 2
    assert "only minisgl lab takes what follows --: --debug" in capsys.readouterr().err


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "one.ipynb").write_text("{}")
    assert f"there is no folder {tmp_path / 'no'};" in said([str(tmp_path / "no")])
    assert f"{tmp_path / 'one.ipynb'} is no folder; minisgl lab {tmp_path} " in said(
        [str(tmp_path / "one.ipynb")]
    )
