"""What installs minisgl: pyproject.toml, environment.yml and the wheel built from them.

environment.yml is checked by parsing its specs and by asking that its pip section is the project's
own extra, whose requirements this very environment fulfils. The conda solve itself was not run: no
conda channel could be reached where this was written.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# import name -> distribution, where they differ
DISTRIBUTION = {
    "flashinfer": "flashinfer-python",
    "sgl_kernel": "sglang-kernel",
    "tvm_ffi": "apache-tvm-ffi",
    "triton": "torch",  # comes with torch, in the version that fits it
    "zmq": "pyzmq",
    "IPython": "jupyterlab",
    "traitlets": "ipywidgets",
    "PIL": "matplotlib",
}


def requirements(*extras: str) -> list[Requirement]:
    """What an install with these extras asks for, ``minisgl[...]`` followed."""
    out = []
    for text in [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]:
        requirement = Requirement(text)
        if requirement.name == "minisgl":
            out += requirements(*requirement.extras)
        else:
            out.append(requirement)
    return out


def test_this_environment_fulfils_what_the_dev_extra_asks() -> None:
    for requirement in requirements("dev"):
        if requirement.marker is None or requirement.marker.evaluate():
            installed = metadata.version(requirement.name)
            assert requirement.specifier.contains(installed, prereleases=True), requirement


def test_the_cuda_extra_fits_the_base_and_leaves_triton_to_torch() -> None:
    by_name: dict[str, SpecifierSet] = {}
    for requirement in requirements("cuda"):
        by_name[requirement.name] = (
            by_name.get(requirement.name, SpecifierSet()) & requirement.specifier
        )
    assert (
        "2.13.0" in by_name["torch"]
    )  # the torch that sglang-kernel 0.4.7 and 0.4.8 are built for
    assert "2.14.0" not in by_name["torch"]
    assert "0.4.8" in by_name["sglang-kernel"]
    assert "0.4.5" not in by_name["sglang-kernel"]
    assert "0.4.9" not in by_name["sglang-kernel"]
    assert "triton" not in by_name
    assert "sgl-kernel" not in by_name


def test_every_package_that_minisgl_imports_is_declared() -> None:
    declared = {requirement.name.lower() for requirement in requirements(*EXTRAS)}
    for path in (ROOT / "minisgl").rglob("*.py"):
        for name in _imported(path) - set(sys.stdlib_module_names) - {"minisgl"}:
            distribution = DISTRIBUTION.get(name, name).replace("_", "-").lower()
            assert distribution in declared, f"{path} imports {name}; add it to pyproject.toml"


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_environment_yml_installs_the_dev_extra_into_a_python_the_project_takes() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "minisgl"
    *specs, pip = environment["dependencies"]
    assert pip == {"pip": ["-e .[dev]"]}
    python = dict(spec.split(" ", 1) for spec in specs)["python"]
    asked = SpecifierSet(PROJECT["requires-python"])
    minors = [f"3.{minor}" for minor in range(8, 20)]
    assert [m for m in minors if m in SpecifierSet(python)] == [m for m in minors if m in asked][:4]


def test_conda_reads_the_specs_of_environment_yml() -> None:
    rattler = pytest.importorskip("rattler", reason="py-rattler is installed on Linux only")
    *specs, _ = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    read = [rattler.MatchSpec(spec) for spec in specs]
    assert [spec.name.normalized for spec in read] == ["python", "pip"]
    assert all(spec.version for spec in read)


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    """Built offline with the installed backend, from a copy, and compared with the folder."""
    source, built = tmp_path / "source", tmp_path / "built"
    junk = shutil.ignore_patterns("__pycache__", "*.so", ".ipynb_checkpoints")
    shutil.copytree(ROOT / "minisgl", source / "minisgl", ignore=junk)
    for name in ("pyproject.toml", "LICENSE", "README.md", ".gitignore"):
        shutil.copy(ROOT / name, source / name)
    build = f"from hatchling.build import build_wheel; build_wheel({str(built)!r})"
    built.mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("minisgl/")}
        (entry,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        scripts = archive.read(entry).decode()
    there = {str(p.relative_to(source)) for p in (source / "minisgl").rglob("*") if p.is_file()}
    assert packed == there
    assert "minisgl/py.typed" in packed
    assert "minisgl = minisgl.__main__:main" in scripts


def test_the_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "pip install -e . && minisgl demo" in readme
    assert 'pip install -e ".[dev]" && pytest' in readme


def test_the_script_is_the_module() -> None:
    scripts = [s.value for s in metadata.entry_points(group="console_scripts", name="minisgl")]
    assert scripts == ["minisgl.__main__:main"], "install the project: pip install -e '.[dev]'"
    said = [
        subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
        for command in ([sys.executable, "-m", "minisgl"], [str(_script("minisgl"))])
    ]
    assert said[0] == said[1] != ""


def _script(name: str) -> Path:
    return Path(sys.executable).parent / name


def test_the_continuous_check_is_executable_and_runs_the_readmes_test_command() -> None:
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    script = path.read_text()
    assert 'pip install -qq -e ".[dev]"' in script
    assert re.search(r"^check pytest$", script, re.MULTILINE)
