"""Every toggle and size of an engine in one frozen object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, Final, Literal, NamedTuple

from minisgl.core import as_int
from minisgl.display import Html, card, counted, table

Auto = Literal["auto"]
AUTO: Final = "auto"

ON_GPUS: Final = (
    "flashinfer",
    "fa3",
    "triton",
    "fa3,flashinfer",
    "fa3,triton",
    "fa3,cuda",
    "flashinfer,cuda",
    "flashinfer,triton",
)


def _option(default: Any, doc: str, choices: tuple[Any, ...] = (), least: int = 1) -> Any:
    return field(default=default, metadata={"doc": doc, "choices": choices, "least": least})


@dataclass(frozen=True)
class EngineConfig:
    """What an engine does and how large it is. Each field is one toggle that can be ablated.

    Raises TypeError or ValueError, naming the field, for a value that can never be right.
    ``describe`` gives each field's sentence.
    """

    overlap: bool = _option(True, "plan and book on the host while the device computes a batch")
    prefix_cache: str = _option(
        "radix", "where finished prefixes are found again", ("radix", "naive")
    )
    chunked_prefill: bool = _option(
        True, "split a prompt that does not fit in what a step has left"
    )
    policy: str | Callable[..., Any] = _option(
        "prefill_first",
        "who runs next: a name, or a function from a ledger to a plan",
        ("prefill_first", "mixed", "decode_first", "longest_prefix"),
    )
    admission: str = _option(
        "reserve",
        "reserve: admit what fits to its end, never preempt; "
        "optimistic: admit by expected length, preempt when the pages run out",
        ("reserve", "optimistic"),
    )
    expected_output: int = _option(
        64, "tokens that optimistic admission expects of a request until some have finished"
    )
    page_size: int = _option(16, "positions in a KV page")
    num_pages: int | Auto = _option(AUTO, "KV pages in the pool")
    max_running: int | Auto = _option(AUTO, "requests that hold a slot at a time")
    max_step_tokens: int | Auto = _option(AUTO, "positions that one step computes at most")
    max_seq_len: int | Auto = _option(AUTO, "positions of one sequence, within model and pool")
    attention: str = _option(
        AUTO,
        "attention backend: native is C++, grouped is torch, torch is the slow oracle; on a GPU "
        "fa3 (FlashAttention 3), flashinfer, triton (our own), or one for prompts and another for "
        "decode steps, as in fa3,triton and fa3,cuda (cuda, our own, too, is for these alone)",
        (AUTO, "torch", "grouped", "native", *ON_GPUS),
    )
    kernels: str = _option(
        AUTO,
        "what computes the layers: torch, or what is compiled at first use: native C++ (CPU, "
        "float32), cuda (NVIDIA GPU)",
        (AUTO, "torch", "native", "cuda"),
    )
    quantization: str | None = _option(
        AUTO,
        "how weights are kept; None: as stored; fp16: rounded; awq: in the 4 bits they come in; "
        "awq_marlin: likewise, arranged for tensor cores, which auto takes where it can",
        (AUTO, None, "fp16", "awq", "awq_marlin"),
    )
    cuda_graph: bool | Auto = _option(
        AUTO, "launch a decode step as one recorded graph (GPU)", (AUTO, True, False)
    )
    graph_rows: int | Auto = _option(AUTO, "requests in the largest graph; larger steps have none")
    megakernel: bool | Auto = _option(
        AUTO,
        "compute all layers of a step of one token in one kernel (GPU, 16-bit numbers)",
        (AUTO, True, False),
    )
    device: str = _option(AUTO, "where the model computes", (AUTO, "cpu", "cuda"))
    dtype: str = _option(
        AUTO, "what is computed and stored", (AUTO, "float32", "float16", "bfloat16")
    )
    runner: str = _option(
        "torch", "torch computes the model; hash is the scheduler's oracle", ("torch", "hash")
    )
    tp: int = _option(1, "processes that share each layer (tensor parallelism)")
    threads: int | Auto = _option(AUTO, "CPU threads that compute a batch, in each process")
    seed: int = _option(0, "what requests without a seed of their own are sampled with", least=0)
    record: bool = _option(True, "keep every input, so that the run can be replayed")
    history: int | None = _option(None, "steps that are kept for looking and going back; None: all")
    snapshots: int = _option(256, "MiB that snapshots of KV pages may take, for going back")
    check: bool = _option(False, "check every page and slot after every step (slow)")

    def __post_init__(self) -> None:
        for option in fields(self):
            value, choices = getattr(self, option.name), option.metadata["choices"]
            if isinstance(option.default, bool):
                if not isinstance(value, bool):
                    raise TypeError(f"{option.name} must be True or False, got {value!r}")
            elif choices:
                if isinstance(value, bool) and any(choice is value for choice in choices):
                    continue
                if (callable(value) and option.name == "policy") or (
                    value is None and None in choices
                ):
                    continue
                if not isinstance(value, str):
                    raise TypeError(f"{option.name} must be one of {choices}, got {value!r}")
                if value not in choices:
                    raise ValueError(f"{option.name} must be one of {choices}, got {value!r}")
            elif value != AUTO and not (value is None and option.default is None):
                object.__setattr__(
                    self, option.name, as_int(option.name, value, option.metadata["least"])
                )

    def but(self, **changes: Any) -> EngineConfig:
        """The same configuration with some fields changed."""
        unknown = sorted(set(changes) - {option.name for option in fields(self)})
        if unknown:
            known = ", ".join(option.name for option in fields(self))
            raise TypeError(f"no such option: {', '.join(unknown)}; there are {known}")
        return replace(self, **changes)

    @property
    def limits(self) -> Limits:
        """The sizes, all known.

        Raises ValueError if one is still "auto": ``resolve`` first.
        """

        def size(name: str) -> int:
            value = getattr(self, name)
            if not isinstance(value, int):
                raise ValueError(f"{name} is still {value!r}; resolve the configuration first")
            return value

        return Limits(
            num_pages=size("num_pages"),
            page_size=size("page_size"),
            max_running=size("max_running"),
            max_step_tokens=size("max_step_tokens"),
            max_seq_len=size("max_seq_len"),
            chunked_prefill=self.chunked_prefill,
            optimistic=self.admission == "optimistic",
            expected_output=self.expected_output,
        )

    @property
    def policy_name(self) -> str:
        """The policy's name, or that of the function."""
        return self.policy if isinstance(self.policy, str) else _shown(self.policy)

    def __repr__(self) -> str:
        """Only what differs from the default."""
        changed = (f"{name}={_shown(value)}" for name, value, _ in self._changed())
        return f"EngineConfig({', '.join(changed)})"

    def _repr_html_(self) -> Html:
        rows = [
            (name, _shown(value), _shown(option.default), option.metadata["doc"])
            for name, value, option in self._changed()
        ]
        same = len(fields(self)) - len(rows)
        says = f"{counted(len(rows), 'option')} set, {same} as by default"
        return card("EngineConfig", says, table(("option", "value", "default", "meaning"), rows))

    def _changed(self) -> Iterator[tuple[str, object, Field[Any]]]:
        """Each option that differs from its default: its name, its value, its field."""
        for option in fields(self):
            if (value := getattr(self, option.name)) != option.default:
                yield option.name, value, option

    @staticmethod
    def describe() -> dict[str, str]:
        """Each option's meaning, by name."""
        return {option.name: option.metadata["doc"] for option in fields(EngineConfig)}


def _shown(value: object) -> str:
    """A value as one would write it; a policy of one's own by its name, which has no address."""
    if not callable(value):
        return repr(value)
    return getattr(value, "__name__", type(value).__name__)


class Limits(NamedTuple):
    """The sizes of a resolved configuration: the integers that scheduler and runner keep to."""

    num_pages: int
    page_size: int = 16
    max_running: int = 64
    max_step_tokens: int = 512
    max_seq_len: int = 4096
    chunked_prefill: bool = True
    optimistic: bool = False  # admission by expected length
    expected_output: int = 64  # ... which is this many tokens until requests have finished
