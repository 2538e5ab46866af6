"""Compiling the C++ kernels: kept for the next time, and a reason where it cannot be done."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minisgl
from minisgl.kernel import compile

BUILD = "import sys; from pathlib import Path; from minisgl.kernel.compile import load; "
BUILD += "print(load(Path(sys.argv[1]))['panel']())"


def test_two_processes_that_build_at_once_both_get_the_kernels(tmp_path: Path) -> None:
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    assert said[0] == said[1] and int(said[0]) in (16, 32)
    (built,) = tmp_path.iterdir()
    made = built.stat().st_mtime_ns
    compile.load(tmp_path)
    assert built.stat().st_mtime_ns == made


def test_without_a_compiler_torch_computes_and_one_warning_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(RuntimeWarning, match="no C.. compiler .*; torch computes") as warned:
        engine = minisgl.load()
    assert (engine.config.kernels, engine.config.attention) == ("torch", "grouped")
    engine.close()
    assert len(warned) == 1


def test_native_kernels_that_were_asked_for_and_cannot_be_had_are_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match="native kernels were asked"):
        minisgl.load(attention="native")


def test_a_cache_that_cannot_be_written_is_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(compile.NoKernels, match="compiling or loading them failed"):
        compile.load(file / "cache")


def test_a_value_fills_a_register_without_arithmetic() -> None:
    """An addition of zero for each value takes a product of many rows half its speed."""
    source = '#include "vec.h"\nminisgl::Vec fill(const float* x) { return minisgl::splat(*x); }\n'
    command = ["c++", *compile.FLAGS, "-S", "-I", str(compile.SOURCES), "-x", "c++", "-o", "-", "-"]
    said = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    assert "fill" in said and "add" not in said


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc; there is none here")
@pytest.mark.parametrize(
    ("source", "exported", "capability"),
    [
        (source, exported, (major, 0))
        for source, exported, least in (
            ("cuda.cu", "product", 8),
            ("marlin.cu", "multiply", 8),
            ("megakernel.cu", "decode", 9),
        )
        for major in range(least, 11)
    ]
    + [("many.cu", "multiply", (9, 0))],
    ids=str,
)
def test_the_cuda_kernels_compile_without_a_gpu(
    source: str, exported: str, capability: tuple[int, int], tmp_path: Path
) -> None:
    module = compile.load_cuda(capability, tmp_path, source=source)
    assert callable(module[exported])
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc; there is none here")
def test_products_of_warpgroups_go_on_while_others_begin(tmp_path: Path) -> None:
    """Where the compiler is not sure of their registers it makes each wait, and says so."""
    libinfo = pytest.importorskip("tvm_ffi.libinfo")
    folders = (libinfo.find_include_path(), libinfo.find_dlpack_include_path())
    command = ["nvcc", "-std=c++17", "-O3", "-cubin", "-arch=sm_90a", "-Xptxas=-v"]
    command += [f"-I{folder}" for folder in folders]
    command += [str(compile.SOURCES / "marlin.cu"), "-o", str(tmp_path / "made")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    wide = [part for part in said.split("Compiling entry function") if "wide_kernel" in part]
    assert wide and all(" 0 bytes spill stores" in part for part in wide)
    assert "serialized" not in said
    command[-3:] = [str(compile.SOURCES / "many.cu"), "-o", str(tmp_path / "many")]
    many = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    parts = many.split("Compiling entry function")[1:]
    assert len(parts) == 4 and all(" 0 bytes spill stores" in part for part in parts)
    assert "serialized" not in many
    # the fewest tokens take products of warps there, too: no empty kernel
    few = [part for part in said.split("Compiling entry function") if "multiply_kernel" in part]
    used = [re.search(r"Used (\d+) registers", part) for part in few if "Li16ELi" in part]
    assert len(used) == 4 and all(found and int(found[1]) > 40 for found in used)


@pytest.mark.skipif(
    Path("/usr/local/cuda/bin/nvcc").exists(), reason="nvcc is where it is looked for in any case"
)
def test_without_nvcc_the_reason_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PATH", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(compile.NoKernels, match="no CUDA compiler"):
        compile.load_cuda((9, 0), tmp_path)


def test_a_mistake_in_a_cuda_source_is_a_reason(tmp_path: Path) -> None:
    with pytest.raises(compile.NoKernels, match="compiling or loading them failed|no CUDA"):
        compile.load_cuda((9, 0), tmp_path, source="gemm.h")
