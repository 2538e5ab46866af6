"""The CUDA sources on a CPU, by an emulation of what they use of a GPU."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minisgl.kernel import compile as kernels

EMULATION = Path(__file__).parent / "emulated"
SOURCES = Path(kernels.__file__).parent / "csrc"


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """A function: what this file of ``csrc`` exports, for tensors on the CPU; and ``emulate(seed,
    copies, products)``, which the emulation explains."""
    tvm_ffi = pytest.importorskip("tvm_ffi", reason="no apache-tvm-ffi, which calls the kernels")
    from tvm_ffi.libinfo import find_dlpack_include_path, find_include_path

    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler to emulate a GPU; there is none")
    folder = tmp_path_factory.mktemp("emulated")  # includes look beside the file that includes
    for file in (*SOURCES.glob("*.cu"), *SOURCES.glob("*.cuh"), *EMULATION.glob("*.cuh")):
        shutil.copy(file, folder)
    made: dict[str, Any] = {}

    def emulated(source: str) -> Any:
        if source not in made:
            path = folder / f"{source}.so"
            flags = ["-x", "c++", "-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas"]
            flags += [f"-I{find_include_path()}", f"-I{find_dlpack_include_path()}"]
            command = [compiler, *flags, str(folder / source), "-o", str(path)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            made[source] = tvm_ffi.load_module(str(path))
        return made[source]

    return emulated
