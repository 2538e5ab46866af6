"""Names that a configuration may use, and where the thing behind each name is defined."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

_TABLES: Final[dict[str, dict[str, str]]] = {
    "policy": {
        "prefill_first": "minisgl.scheduler.policy:prefill_first",
        "mixed": "minisgl.scheduler.policy:mixed",
        "decode_first": "minisgl.scheduler.policy:decode_first",
        "longest_prefix": "minisgl.scheduler.policy:longest_prefix",
    },
    "prefix_cache": {
        "radix": "minisgl.kvcache.radix:RadixCache",
        "naive": "minisgl.kvcache.naive:NaiveCache",
    },
    "attention": {
        "torch": "minisgl.attention.torch:TorchAttention",
        "grouped": "minisgl.attention.grouped:GroupedAttention",
        "native": "minisgl.attention.native:NativeAttention",
        "flashinfer": "minisgl.attention.flashinfer:FlashInferAttention",
        "fa3": "minisgl.attention.flash_attention:FlashAttention",
        "fa3,flashinfer": "minisgl.attention.hybrid:fa3_flashinfer",
        "fa3,triton": "minisgl.attention.hybrid:fa3_triton",
        "fa3,cuda": "minisgl.attention.hybrid:fa3_cuda",
        "flashinfer,cuda": "minisgl.attention.hybrid:flashinfer_cuda",
        "flashinfer,triton": "minisgl.attention.hybrid:flashinfer_triton",
        "triton": "minisgl.attention.triton:TritonAttention",
    },
    "kernels": {
        "torch": "minisgl.kernel.plain:PlainKernels",
        "native": "minisgl.kernel.native:NativeKernels",
        "cuda": "minisgl.kernel.cuda:CudaKernels",
    },
    "quantization": {
        "stored": "minisgl.layers.quantization.stored:stored",
        "fp16": "minisgl.layers.quantization.fp16:fp16",
        "awq": "minisgl.layers.quantization.awq:awq",
        "awq_marlin": "minisgl.layers.quantization.awq_marlin:awq_marlin",
    },
    "view": {  # what a trace can show of itself, for the views stand above it
        "plot": "minisgl.inspector.plot:Plot",
        "page": "minisgl.inspector.page:save_html",
        "profile": "minisgl.inspector.plot_profile:plot",
        "both": "minisgl.inspector.show:inspect_both",
        "compare": "minisgl.inspector.plot_compare:plot",
    },
    "embedded": {  # models that come with the package
        "tiny": "minisgl.tiny:path",
        "tiny-awq": "minisgl.tiny:awq_path",
    },
    "model": {  # the names in config.json's "architectures"
        "LlamaForCausalLM": "minisgl.models.llama:Llama",
        "MistralForCausalLM": "minisgl.models.mistral:Mistral",
        "Qwen2ForCausalLM": "minisgl.models.qwen2:Qwen2",
        "Qwen3ForCausalLM": "minisgl.models.qwen3:Qwen3",
    },
}


def names(kind: str) -> tuple[str, ...]:
    """The names known for a kind: "policy", "attention", "model" and so on."""
    return tuple(_TABLES[kind])


def find(kind: str, name: str) -> Any:
    """Import and return the object behind a name.

    Raises ValueError that lists the known names.
    """
    if name not in _TABLES[kind]:
        raise ValueError(f"unknown {kind} {name!r}; there are {', '.join(_TABLES[kind])}")
    module, _, attribute = _TABLES[kind][name].partition(":")
    return getattr(import_module(module), attribute)
