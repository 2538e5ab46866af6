"""The C++ kernels, compiled where they run: once for each source, compiler flags and kind of CPU.

One compiler call, whose result is moved into place whole: processes that build at the same time
each make a file of their own, and whoever comes last replaces it with the same.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

_SOURCES: Final = Path(__file__).parent / "csrc"
_FLAGS: Final = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",  # a * b + c is rounded once; nothing else departs from IEEE arithmetic
    "-fno-math-errno",
    "-fopenmp",
    "-fPIC",
    "-shared",
)
_PATIENCE: Final = 300.0  # seconds for the compiler


class NoKernels(Exception):
    """Why the C++ kernels cannot be had here, as a sentence."""


def load(cache: Path | None = None) -> Any:
    """The module of C++ functions that ``csrc/cpu.cpp`` exports, compiled if it is not yet.

    cache: where compiled files are kept; None: ``~/.cache/minisgl``. Takes about 7 s the first
    time, then milliseconds. Raises NoKernels with the reason.
    """
    try:
        import tvm_ffi
        from tvm_ffi.libinfo import find_dlpack_include_path, find_include_path
    except ImportError as error:
        raise NoKernels(f"the package apache-tvm-ffi cannot be imported ({error})") from error
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise NoKernels("there is no C++ compiler (c++ or g++)")
    try:
        cache = Path.home() / ".cache" / "minisgl" if cache is None else cache
        path = cache / f"cpu-{_digest(compiler, tvm_ffi.__version__)}.so"
        if not path.exists():
            _compile(compiler, (find_include_path(), find_dlpack_include_path()), path)
        return tvm_ffi.load_module(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise NoKernels(f"compiling or loading them failed: {error}") from error


def _compile(compiler: str, include: tuple[str, ...], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        where = [f"-I{folder}" for folder in include]
        command = [compiler, *_FLAGS, *where, str(_SOURCES / "cpu.cpp"), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
        if done.returncode:
            first = next(
                (line for line in done.stderr.splitlines() if "error" in line), "no reason"
            )
            raise RuntimeError(f"{compiler} says: {first}")
        os.replace(made, path)


def _digest(compiler: str, version: str) -> str:
    """A name for what is built: other sources, flags, compilers or CPUs get another."""
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.iterdir()):
        digest.update(path.read_bytes())
    about = (compiler, os.stat(os.path.realpath(compiler)).st_mtime, version, _FLAGS, _cpu())
    digest.update(repr(about).encode())
    return digest.hexdigest()[:16]


def _cpu() -> str:
    """What -march=native means here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    wanted = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(wanted)}))
