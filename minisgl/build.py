"""Where the parts are picked and put together: the one place that knows both columns.

The torch side is imported when a model is loaded, not before: torch takes seconds.
"""

from __future__ import annotations

import logging
import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minisgl.config import EngineConfig
from minisgl.engine.engine import Engine
from minisgl.engine.runner import HashRunner, Runner
from minisgl.resolve import (
    BULK_COPIES,
    TENSOR_CORES,
    WARPGROUPS,
    Hardware,
    gpu_attention,
    may_take_decode_kernels,
    no_marlin,
    resolve,
)
from minisgl.scheduler.policy import find_policy
from minisgl.scheduler.replay import fresh

if TYPE_CHECKING:
    from minisgl.models.config import ModelConfig

_log = logging.getLogger("minisgl")


def load(model: str | Path = "tiny", config: EngineConfig | None = None, **toggles: Any) -> Engine:
    """An engine that is ready to step.

    model: "tiny" (the embedded model), a folder with a checkpoint, or a Hugging Face id.
    toggles: any field of ``EngineConfig``, changing ``config``.
    A folder without tokenizer files loads; then prompts are token ids.
    Raises ValueError, FileNotFoundError or ConnectionError that says what is wrong with the model
    or the configuration, and what would do.
    """
    from minisgl.models.config import ModelConfig
    from minisgl.models.hub import locate
    from minisgl.tokenizer import load_codec

    wanted = (config or EngineConfig()).but(**toggles)
    folder = locate(os.fspath(model))
    described = ModelConfig.read(folder)
    machine = hardware()
    if wanted.runner == "torch" and (wanted.device == "cpu" or not machine.gpus):
        machine = machine._replace(native=_has_native_kernels(wanted))
    elif wanted.runner == "torch":
        machine = machine._replace(cuda_kernels=_has_cuda_kernels(wanted, machine))
        _has_many_kernels(machine)  # kernel/many.py asks once more, and does without
        machine = machine._replace(megakernels=_has_megakernels(wanted, machine))
        if may_take_decode_kernels(wanted, machine, described.facts()):
            machine = machine._replace(decode_kernels=_has_decode_kernels(machine))
        if described.packing is not None:
            machine = machine._replace(marlin_kernels=_has_marlin_kernels(wanted, machine))
    final = resolve(wanted, machine, os.environ, described.facts())
    if final.device == "cuda" and wanted.attention == "auto":
        _log.info(gpu_attention(final, machine, described.facts())[1])
    if final.device == "cuda" and described.packing and wanted.quantization in (None, "auto"):
        why = no_marlin(final.device, final.dtype, machine) or "products on tensor cores"
        _log.info(f"weights of four bits: quantization {final.quantization!r} ({why})")
    codec = load_codec(folder)
    scheduler = fresh(final, described.eos_token_ids, find_policy(final.policy))
    runner = _runner(folder, described, final)
    vocab_size, name = described.vocab_size, os.fspath(model)
    return Engine(scheduler, runner, final, vocab_size=vocab_size, codec=codec, model=name)


def hardware() -> Hardware:
    """The machine this process runs on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Hardware(cores=cores or 1, memory=_free_memory(), **_gpus())


def _runner(folder: Path, described: ModelConfig, config: EngineConfig) -> Runner:
    limits = config.limits
    if config.runner == "hash":
        sizes = (limits.num_pages, limits.page_size, limits.max_running)
        return HashRunner(*sizes, described.vocab_size)
    depth = 2 if config.overlap else 1
    if config.tp > 1:
        from minisgl.executor.tp_runner import start_ranks

        return start_ranks(folder, config, depth)
    from minisgl.executor.torch_runner import load_runner

    return load_runner(folder, described, config, depth)


def _has_native_kernels(wanted: EngineConfig) -> bool:
    """Whether the C++ kernels are there, compiled now if need be. Warns with the reason if not."""
    from minisgl.kernel import compile

    if not {wanted.attention, wanted.kernels} & {"auto", "native"}:
        return False
    try:
        compile.load()
    except compile.NoKernels as error:
        warnings.warn(
            f"no C++ kernels: {error}; torch computes instead, which is slower "
            f"(kernels='torch', attention='grouped' to choose that)",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    return True


def _has_cuda_kernels(wanted: EngineConfig, machine: Hardware) -> bool:
    """Whether the CUDA kernels are there, compiled now if need be. Warns with the reason if not."""
    if wanted.kernels not in ("auto", "cuda"):
        return False
    return _compiles("cuda.cu", machine, "torch computes instead", "kernels='torch'")


def _has_many_kernels(machine: Hardware) -> bool:
    """Likewise those for products of many tokens."""
    if not machine.cuda_kernels or machine.capability != WARPGROUPS:
        return False
    instead = "cuBLAS multiplies 5 tokens and more"
    return _compiles("many.cu", machine, instead, "kernels='torch'")


def _has_marlin_kernels(wanted: EngineConfig, machine: Hardware) -> bool:
    """Likewise the kernels for weights of four bits."""
    if wanted.quantization in ("awq", "fp16") or machine.capability < TENSOR_CORES:
        return False
    return _compiles("marlin.cu", machine, "Triton's compute instead", "quantization='awq'")


def _has_megakernels(wanted: EngineConfig, machine: Hardware) -> bool:
    """Likewise those that compute all layers of a token."""
    if wanted.megakernel is False or wanted.dtype == "float32" or wanted.tp > 1:
        return False
    if not machine.cuda_kernels or machine.capability < BULK_COPIES:
        return False
    instead = "a token's layers are kernels of their own"
    return _compiles("megakernel.cu", machine, instead, "megakernel=False")


def _has_decode_kernels(machine: Hardware) -> bool:
    """Likewise those for attention in decode steps."""
    prompts = "fa3" if "sgl_kernel" in machine.packages else "flashinfer"
    choice = f"attention='{prompts},triton'"
    return _compiles("decode.cu", machine, "Triton's compute instead", choice)


def _compiles(source: str, machine: Hardware, instead: str, choice: str) -> bool:
    from minisgl.kernel import compile

    try:
        compile.load_cuda(machine.capability, source=source)
    except compile.NoKernels as error:
        warnings.warn(
            f"no CUDA kernels ({source}): {error}; {instead}, which is slower "
            f"({choice} to choose that)",
            RuntimeWarning,
            stacklevel=4,
        )
        return False
    return True


def _free_memory() -> int:
    """Bytes this process may still take, as the kernel estimates; half of all where it cannot."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _gpus() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {}
    names = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    known = ("flashinfer", "sgl_kernel", "triton")
    return {
        "gpus": names,
        "gpu_memory": torch.cuda.mem_get_info()[0],
        "capability": torch.cuda.get_device_capability(),
        "packages": frozenset(name for name in known if find_spec(name) is not None),
    }
