"""Which compiled kernels a machine has: asked for only where they can be used, and where they
cannot be compiled, one warning says why and what computes instead."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minisgl.build import (
    _has_cuda_kernels,
    _has_decode_kernels,
    _has_many_kernels,
    _has_marlin_kernels,
    _has_megakernels,
)
from minisgl.config import EngineConfig
from minisgl.resolve import Hardware

pytest.importorskip("tvm_ffi", reason="no apache-tvm-ffi, which calls the kernels")

H200 = Hardware(
    cores=16,
    memory=128 << 30,
    gpus=("H200",),
    gpu_memory=140 << 30,
    cuda_kernels=True,
    capability=(9, 0),
)
Has = Callable[[EngineConfig, Hardware], bool]


@pytest.fixture
def broken_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The only nvcc there is finds a mistake in any file."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'line 7: error: no such instruction' >&2\nexit 1\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("HOME", str(tmp_path))  # where compiled files are kept


@pytest.mark.parametrize(
    ("has", "source", "instead", "choice"),
    [
        (_has_cuda_kernels, "cuda.cu", "torch computes instead", "kernels='torch'"),
        (
            lambda _, machine: _has_many_kernels(machine),
            "many.cu",
            "cuBLAS multiplies 5 tokens and more",
            "kernels='torch'",
        ),
        (_has_marlin_kernels, "marlin.cu", "Triton's compute instead", "quantization='awq'"),
        (
            _has_megakernels,
            "megakernel.cu",
            "a token's layers are kernels of their own",
            "megakernel=False",
        ),
        (
            lambda _, machine: _has_decode_kernels(machine),
            "decode.cu",
            "Triton's compute instead",
            "attention='flashinfer,triton'",
        ),
    ],
    ids=["cuda", "many", "marlin", "megakernel", "decode"],
)
def test_kernels_that_cannot_be_compiled_are_done_without_and_one_warning_says_why(
    broken_compiler: None, has: Has, source: str, instead: str, choice: str
) -> None:
    with pytest.warns(RuntimeWarning) as warned:
        assert not has(EngineConfig(), H200)
    (warning,) = warned
    said = str(warning.message)
    assert said.startswith(f"no CUDA kernels ({source}): compiling or loading them failed")
    assert "line 7: error: no such instruction" in said
    assert said.endswith(f"; {instead}, which is slower ({choice} to choose that)")


@pytest.mark.parametrize(
    ("toggles", "changes"),
    [
        ({"megakernel": False}, {}),
        ({"dtype": "float32"}, {}),
        ({"tp": 2}, {}),
        ({}, {"cuda_kernels": False}),
        ({}, {"capability": (8, 9)}),
    ],
    ids=str,
)
def test_all_layers_at_once_are_not_compiled_where_they_cannot_be_used(
    broken_compiler: None, toggles: dict[str, Any], changes: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody calls the compiler
        assert not _has_megakernels(EngineConfig(**toggles), H200._replace(**changes))


@pytest.mark.parametrize(
    "changes",
    [{"cuda_kernels": False}, {"capability": (8, 9)}, {"capability": (10, 0)}],
    ids=str,
)
def test_products_of_many_tokens_are_not_compiled_where_they_cannot_be_used(
    broken_compiler: None, changes: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody calls the compiler
        assert not _has_many_kernels(H200._replace(**changes))
