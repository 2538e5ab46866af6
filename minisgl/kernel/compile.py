"""The C++ and CUDA kernels, compiled where they run: once for each source, flags and processor.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

SOURCES: Final = Path(__file__).parent / "csrc"
FLAGS: Final = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",  # a * b + c is rounded once; nothing else departs from IEEE arithmetic
    "-fno-math-errno",
    "-fopenmp",
    "-fPIC",
    "-shared",
)
_CUDA_FLAGS: Final = ("-std=c++17", "-O3", "-Xcompiler", "-fPIC", "-shared")
_PATIENCE: Final = 300.0  # seconds for the compiler


class NoKernels(Exception):
    """Why compiled kernels cannot be had here, as a sentence."""


def load(cache: Path | None = None) -> Any:
    """The module of C++ functions that ``csrc/cpu.cpp`` exports, compiled if it is not yet.

    cache: where compiled files are kept; None: ``~/.cache/minisgl``. Takes about 7 s the first
    time, then milliseconds. Raises NoKernels with the reason.
    """
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise NoKernels("there is no C++ compiler (c++ or g++)")
    return _load("cpu.cpp", "*.h", compiler, FLAGS, _cpu(), cache)


def load_cuda(
    capability: tuple[int, int], cache: Path | None = None, source: str = "cuda.cu"
) -> Any:
    """The module of functions that this file of ``csrc`` exports, for GPUs of this capability.

    cache: as in ``load``. Takes about 30 s the first time. Raises NoKernels with the reason.
    """
    homes = (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda")
    places = os.pathsep.join(str(Path(home, "bin")) for home in homes if home)
    compiler = shutil.which("nvcc") or shutil.which("nvcc", path=places)
    if compiler is None:
        raise NoKernels("there is no CUDA compiler (nvcc)")
    # 9.0's products of warpgroups are for that capability alone, which an "a" says
    number = "".join(map(str, capability)) + ("a" if capability == (9, 0) else "")
    flags = (*_CUDA_FLAGS, f"-gencode=arch=compute_{number},code=sm_{number}")
    return _load(source, "*.cuh", compiler, flags, "", cache)


def _load(
    source: str, headers: str, compiler: str, flags: Sequence[str], about: str, cache: Path | None
) -> Any:
    try:
        import tvm_ffi
        from tvm_ffi.libinfo import find_dlpack_include_path, find_include_path
    except ImportError as error:
        raise NoKernels(f"the package apache-tvm-ffi cannot be imported ({error})") from error
    try:
        cache = Path.home() / ".cache" / "minisgl" if cache is None else cache
        files = [SOURCES / source, *sorted(SOURCES.glob(headers))]
        made = _digest(files, compiler, (tvm_ffi.__version__, *flags, about))
        path = cache / f"{Path(source).stem}-{made}.so"
        if not path.exists():
            include = (find_include_path(), find_dlpack_include_path())
            _compile((compiler, *flags, *(f"-I{folder}" for folder in include)), files[0], path)
        return tvm_ffi.load_module(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise NoKernels(f"compiling or loading them failed: {error}") from error


def _compile(command: Sequence[str], source: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        words = [*command, str(source), "-o", str(made)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE)
        if done.returncode:
            first = next(
                (line for line in done.stderr.splitlines() if "error" in line), "no reason"
            )
            raise RuntimeError(f"{command[0]} says: {first}")
        os.replace(made, path)


def _digest(files: Sequence[Path], compiler: str, about: Sequence[str]) -> str:
    """A name for what is built: other sources, flags, compilers or processors get another."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    digest.update(repr((compiler, os.stat(os.path.realpath(compiler)).st_mtime, about)).encode())
    return digest.hexdigest()[:16]


def _cpu() -> str:
    """What -march=native means here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    wanted = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(wanted)}))
