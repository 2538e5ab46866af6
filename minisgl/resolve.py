"""How "auto" becomes a value, and why: a pure function of the machine, the model and what is asked.

Knows no device: what the machine has, and which kernels compile there, is found out by ``build``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from minisgl.config import AUTO, ON_GPUS, EngineConfig

_GPU_ORDER: Final = (  # as measured; flashinfer,cuda by its parts
    "fa3,cuda",
    "fa3,triton",
    "flashinfer,cuda",
    "flashinfer,triton",
    "triton",
    "flashinfer",
)
_GPU_RESERVE = 4 << 30  # bytes left to activations, logits, graphs and libraries, or a tenth
_GRAPH_ROWS = 256
_KV_MEMORY_SHARE = 4  # a quarter of what is free holds KV pages at most
_AUTO_SEQUENCES = 16  # ... and no more than this many sequences of full length
_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}
TENSOR_CORES: Final = (8, 0)  # capability of the GPUs that csrc/tensor_core.cuh is for
BULK_COPIES: Final = (9, 0)  # ... and csrc/bulk.cuh
WARPGROUPS: Final = (9, 0)  # ... and csrc/warpgroup.cuh, no later one
_FOUR_BITS: Final = ("awq", "awq_marlin")
_MOST_GROUP: Final = 8  # query heads of a key head that csrc/decode.cuh takes
_TILE: Final = 16  # ... and positions of a page that it copies at once
_MOST_ROWS: Final = 4096  # ... and rows whose lengths it has room for
_SMALL_MODEL = 50_000_000  # parameters; below it a second thread costs more than it gives


class Hardware(NamedTuple):
    """The machine, as far as a configuration depends on it."""

    cores: int
    memory: int  # bytes free for this process
    gpus: tuple[str, ...] = ()
    gpu_memory: int = 0  # bytes free on the first GPU
    native: bool = False  # the C++ kernels are compiled, or can be
    cuda_kernels: bool = False  # likewise the CUDA kernels
    marlin_kernels: bool = False  # likewise those for weights of four bits
    megakernels: bool = False  # likewise those that compute all layers of a token
    decode_kernels: bool = False  # likewise those that attend in decode steps
    capability: tuple[int, int] = (0, 0)  # the first GPU's compute capability
    packages: frozenset[str] = frozenset()  # of flashinfer, sgl_kernel, triton: what is installed


class ModelFacts(NamedTuple):
    """The model, as far as a configuration depends on it."""

    context: int  # positions it was made for
    num_parameters: int
    kv_bytes_per_value: Mapping[str, int]  # dtype name -> bytes of K and V of one position
    stored_dtype: str
    num_heads: int = 1
    num_kv_heads: int = 1
    intermediate_size: int = 1
    head_dim: int = 128
    windowed: bool = False  # some layers see the newest positions only
    stored_quantization: str | None = None  # "awq": matrices are stored in four bits
    num_packed: int = 0  # of the parameters: those in matrices that are

    def kv_heads_of(self, tp: int) -> int:
        """The key and value heads that each of ``tp`` ranks holds."""
        return max(1, self.num_kv_heads // tp)

    def can_be_shared(self, tp: int) -> bool:
        """Whether every rank gets whole heads and as many MLP columns as the others. More ranks
        than key and value heads hold copies of them; a vocabulary is padded."""
        most, least = max(self.num_kv_heads, tp), min(self.num_kv_heads, tp)
        return not (self.num_heads % tp or most % least or self.intermediate_size % tp)


def resolve(
    config: EngineConfig,
    hardware: Hardware,
    environment: Mapping[str, str],
    model: ModelFacts,
) -> EngineConfig:
    """Turn every "auto" into a value that can be printed. Pure; nobody else reads the environment.

    ``MINISGL_DISABLE_OVERLAP_SCHEDULING=1`` turns ``overlap`` off.
    Raises ValueError for a value that this machine or model cannot have, naming the way out.
    """
    out = config
    if environment.get("MINISGL_DISABLE_OVERLAP_SCHEDULING", "") not in ("", "0"):
        out = out.but(overlap=False)
    if out.device == AUTO:
        out = out.but(device="cuda" if hardware.gpus and out.runner == "torch" else "cpu")
    if out.device == "cuda" and not hardware.gpus:
        raise ValueError("device='cuda' was asked, but torch sees no GPU here; use device='cpu'")
    on_gpu = out.device == "cuda"
    if out.tp > 1:
        _check_tp(out, hardware, model)
    if out.dtype == AUTO:
        # fp32 is the fast one on a CPU without bf16 units: 60-87 GFLOP/s against 10
        out = out.but(
            dtype=(
                "bfloat16"
                if on_gpu and model.stored_dtype != "float16"
                else "float16" if on_gpu else "float32"
            )
        )
    out = _with_quantization(_with_kernels(out, hardware, model), hardware, model)
    if out.threads == AUTO:
        small = model.num_parameters < _SMALL_MODEL
        out = out.but(threads=1 if small else max(1, hardware.cores // out.tp))
    if out.max_running == AUTO:
        out = out.but(max_running=256 if on_gpu else 64)
    # a GPU holds one rank's keys and values, the machine's memory those of all ranks
    held = model.kv_heads_of(out.tp) * (1 if on_gpu else out.tp)
    position_bytes = model.kv_bytes_per_value[out.dtype] * held // model.num_kv_heads
    if out.graph_rows == AUTO:
        out = out.but(graph_rows=min(int(out.max_running), _GRAPH_ROWS))
    free, share = hardware.memory, 1 / _KV_MEMORY_SHARE
    if on_gpu:
        packed = model.num_packed if out.quantization in _FOUR_BITS else 0
        weights = (model.num_parameters - packed) * _BYTES[out.dtype] + packed * 5 // 8
        weights //= out.tp
        spare = min(_GPU_RESERVE, hardware.gpu_memory // 10)
        free, share = max(0, hardware.gpu_memory - weights - spare), 1.0
    if out.num_pages == AUTO:
        room = int(free * share) // position_bytes
        wanted = _AUTO_SEQUENCES * model.context
        pages = min(room, wanted) // out.page_size
        if pages < 1:
            raise ValueError(
                f"a KV page of {out.page_size} positions needs "
                f"{out.page_size * position_bytes} bytes; {free} are free"
                f"{' beside the weights' if on_gpu else ' and a quarter of them may be used'}; "
                f"set num_pages yourself"
            )
        out = out.but(num_pages=pages)
    longest = model.context if isinstance(out.max_seq_len, str) else out.max_seq_len
    if longest > model.context:
        raise ValueError(
            f"max_seq_len={longest} was asked; the model was made for {model.context} positions"
        )
    assert isinstance(out.num_pages, int)
    asked = out.num_pages * out.page_size * position_bytes
    if asked > free and out.runner == "torch":
        raise ValueError(
            f"num_pages={out.num_pages} of {out.page_size} positions need {asked} bytes, {free} "
            f"are free; lower num_pages, or leave it 'auto'"
        )
    longest = min(longest, out.num_pages * out.page_size)
    out = out.but(max_seq_len=longest)
    if out.max_step_tokens == AUTO:
        step = 8192 if on_gpu else 512
        out = out.but(max_step_tokens=step if out.chunked_prefill else max(step, longest))
    return out


def _check_tp(config: EngineConfig, hardware: Hardware, model: ModelFacts) -> None:
    """Raise ValueError, with the numbers, if ``config.tp`` ranks cannot share this model here."""
    tp = config.tp
    if config.runner != "torch":
        raise ValueError(f"tp={tp} was asked; runner={config.runner!r} is one process, use tp=1")
    if not model.can_be_shared(tp):
        can = [str(n) for n in range(1, model.num_heads + 1) if model.can_be_shared(n)]
        raise ValueError(
            f"tp={tp} was asked; the model's {model.num_heads} attention heads, "
            f"{model.num_kv_heads} key/value heads and {model.intermediate_size} MLP columns can "
            f"be shared evenly by tp={', '.join(can)}"
        )
    if config.device == "cuda" and tp > len(hardware.gpus):
        raise ValueError(
            f"tp={tp} was asked; each process needs a GPU of its own and torch sees "
            f"{len(hardware.gpus)} here, use a smaller tp, or device='cpu'"
        )


def _with_kernels(config: EngineConfig, hardware: Hardware, model: ModelFacts) -> EngineConfig:
    """Compiled kernels wherever they can compute the model: faster at all sizes measured."""
    can = config.device == "cpu" and config.dtype == "float32" and hardware.native
    if "native" in (config.attention, config.kernels) and not can and config.runner == "torch":
        raise ValueError(
            f"native kernels were asked; they compute float32 on a CPU that has a C++ compiler and "
            f"the package apache-tvm-ffi, not {config.dtype} on {config.device} with"
            f"{'' if hardware.native else 'out'} them; use attention='auto' and kernels='auto'"
        )
    on_gpu = config.device == "cuda"
    if on_gpu:
        config = _with_gpu_kernels(config, hardware, model)
    elif config.runner == "torch":
        for option, asked in (
            ("attention", config.attention in ON_GPUS),
            ("kernels", config.kernels == "cuda"),
            ("cuda_graph", config.cuda_graph is True),
            ("megakernel", config.megakernel is True),
        ):
            if asked:
                raise ValueError(
                    f"{option}={getattr(config, option)!r} was asked; it needs an NVIDIA GPU and "
                    f"the device is {config.device!r}, use {option}='auto'"
                )
    out = config
    if out.attention == AUTO:
        out = out.but(attention="native" if can else "grouped")
    if out.kernels == AUTO:
        out = out.but(kernels="native" if can else "torch")
    out = out.but(cuda_graph=False) if out.cuda_graph == AUTO else out
    return out.but(megakernel=False) if out.megakernel == AUTO else out


def _with_gpu_kernels(config: EngineConfig, hardware: Hardware, model: ModelFacts) -> EngineConfig:
    out = config
    if out.attention == AUTO:
        out = out.but(attention=gpu_attention(out, hardware, model)[0])
    elif (why := _cannot(out.attention, out, hardware, model)) is not None:
        raise ValueError(f"attention={out.attention!r} was asked; {why}; use attention='auto'")
    if out.kernels == "cuda" and not hardware.cuda_kernels:
        raise ValueError(
            "kernels='cuda' was asked; they need nvcc and the package apache-tvm-ffi; "
            "use kernels='auto'"
        )
    if out.kernels == AUTO:
        out = out.but(kernels="cuda" if hardware.cuda_kernels else "torch")
    can_graph = out.attention in ON_GPUS
    if out.cuda_graph is True and not can_graph:
        raise ValueError(
            f"cuda_graph=True was asked; attention={out.attention!r} cannot be recorded, "
            f"{', '.join(ON_GPUS)} can; use attention='auto' or cuda_graph='auto'"
        )
    out = out.but(cuda_graph=can_graph) if out.cuda_graph == AUTO else out
    why = no_megakernel(out, hardware)
    if out.megakernel is True and why is not None:
        raise ValueError(f"megakernel=True was asked; {why}; use megakernel='auto'")
    return out.but(megakernel=why is None) if out.megakernel == AUTO else out


def no_megakernel(config: EngineConfig, hardware: Hardware) -> str | None:
    """Why no kernel can compute all layers of a token; None if one can, for sizes that it has."""
    if config.kernels != "cuda":
        return f"it goes with kernels='cuda', these are {config.kernels!r}"
    if config.dtype not in ("float16", "bfloat16"):
        return f"it computes in float16 and bfloat16, not in {config.dtype}"
    if config.tp > 1:
        return f"it computes on one GPU, not with tp={config.tp}"
    if hardware.capability < BULK_COPIES:
        return f"it needs compute capability {BULK_COPIES}, not {hardware.capability}"
    if not hardware.megakernels:
        return "it needs nvcc and the package apache-tvm-ffi"
    return None


def gpu_attention(config: EngineConfig, hardware: Hardware, model: ModelFacts) -> tuple[str, str]:
    """The attention backend that "auto" takes on a GPU, and why, as a sentence.

    The order is that of measurements with 16 requests and more (minisgl/bench/RESULTS.md); what
    cannot compute the model is left out, with its reason.
    """
    reasons = list[str]()
    for name in _GPU_ORDER:
        why = _cannot(name, config, hardware, model)
        if why is None:
            after = f" ({'; '.join(reasons)})" if reasons else ""
            return name, f"attention {name!r}: the fastest measured of those that can{after}"
        reasons.append(f"not {name}: {why}")
    return "grouped", f"attention 'grouped', torch's own: {'; '.join(reasons)}"


def _cannot(name: str, config: EngineConfig, hardware: Hardware, model: ModelFacts) -> str | None:
    """Why a backend cannot compute this model on this GPU; None if it can."""
    if name not in ON_GPUS:
        return None
    for part in name.split(","):
        if part == "cuda":
            if (why := _no_decode_kernels(config, hardware, model)) is not None:
                return why
            continue
        package = {"fa3": "sgl_kernel"}.get(part, part)
        if package not in hardware.packages:
            return f"the package {package} is not installed"
        if part == "triton":
            continue
        if config.dtype != "bfloat16":
            return f"{part} was checked in bfloat16 alone, this is {config.dtype}"
        if part == "fa3" and hardware.capability[0] != 9:
            return f"fa3 needs compute capability 9.x, this GPU has {hardware.capability}"
        if model.head_dim not in (64, 128):
            return f"{part} has heads of 64 and 128, the model's have {model.head_dim}"
        if part == "flashinfer" and model.windowed:
            return "flashinfer's kernels for sliding windows are not built here"
    return None


def may_take_decode_kernels(config: EngineConfig, hardware: Hardware, model: ModelFacts) -> bool:
    """Whether an attention backend that was asked for, or "auto", has a use for csrc/decode.cuh."""
    able = hardware._replace(decode_kernels=True)
    wanted = config.but(dtype="bfloat16") if config.dtype == AUTO else config
    return any(
        _cannot(name, wanted, able, model) is None
        for name in ON_GPUS
        if name.endswith(",cuda") and config.attention in (AUTO, name)
    )


def _no_decode_kernels(config: EngineConfig, hardware: Hardware, model: ModelFacts) -> str | None:
    """Why csrc/decode.cuh cannot attend in this model's decode steps; None if it can."""
    if hardware.capability < BULK_COPIES:
        return f"its kernel needs compute capability {BULK_COPIES}, not {hardware.capability}"
    if config.dtype not in ("float16", "bfloat16"):
        return f"its kernel computes in float16 and bfloat16, not in {config.dtype}"
    if model.head_dim not in (64, 128):
        return f"its kernel has heads of 64 and 128, the model's have {model.head_dim}"
    if model.num_heads > _MOST_GROUP * model.num_kv_heads:
        heads = f"{model.num_heads} for {model.num_kv_heads}"
        return f"its kernel takes up to {_MOST_GROUP} query heads a key head, the model has {heads}"
    if config.page_size % _TILE:
        return f"its kernel takes pages of a multiple of {_TILE}, not of {config.page_size}"
    if isinstance(config.max_running, int) and config.max_running > _MOST_ROWS:
        return f"its kernel takes up to {_MOST_ROWS} rows, not {config.max_running}"
    if not hardware.decode_kernels:
        return "its kernel needs nvcc and the package apache-tvm-ffi"
    return None


def _with_quantization(config: EngineConfig, hardware: Hardware, model: ModelFacts) -> EngineConfig:
    """Weights stay as they are stored: "auto" never changes a number."""
    stored, asked = model.stored_quantization, config.quantization
    if asked in _FOUR_BITS and stored is None:
        raise ValueError(
            f"quantization={asked!r} was asked; the weights are stored in {model.stored_dtype}, "
            f"not in four bits: minisgl quantize MODEL --out DIR makes such a checkpoint of them"
        )
    why = no_marlin(config.device, config.dtype, hardware)
    if asked == "awq_marlin" and why is not None:
        raise ValueError(f"quantization='awq_marlin' was asked; {why}; use quantization='auto'")
    if asked not in (None, AUTO):
        return config
    return config.but(quantization="awq_marlin" if stored == "awq" and why is None else stored)


def no_marlin(device: str, dtype: str, hardware: Hardware) -> str | None:
    """Why weights of four bits cannot be multiplied on tensor cores; None if they can."""
    if device != "cuda":
        return f"it needs an NVIDIA GPU and the device is {device!r}"
    if hardware.capability < TENSOR_CORES:
        return f"it needs compute capability {TENSOR_CORES}, not {hardware.capability}"
    if dtype not in ("float16", "bfloat16"):
        return f"it computes in float16 and bfloat16, not in {dtype}"
    if not hardware.marlin_kernels:
        return "its kernels need nvcc and the package apache-tvm-ffi"
    return None
