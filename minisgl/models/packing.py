"""How a checkpoint's weights are packed into four bits, as its JSON files say it.

Published AWQ checkpoints say it in three places and with two spellings. What is packed otherwise is
refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor

from minisgl.kernel.int4 import PER_WORD, Int4
from minisgl.layers.source import Part
from minisgl.models.fields import Fields

_FILES: Final = (
    "quant_config.json",
    "quantize_config.json",
)  # of those that do not ask config.json


class Fill(Protocol):
    """``layers.source.Source.fill``."""

    def __call__(
        self, into: Tensor, name: str, shape: tuple[int, ...], at: tuple[int, ...] | None = None
    ) -> None: ...


@dataclass(frozen=True)
class Packing:
    """AWQ's "GEMM" layout, see ``kernel.int4``. A matrix with a weight of its own is not packed."""

    group: int | None  # inputs that share a scale; None: all of a matrix's
    where: str  # the file that says so

    @staticmethod
    def read(folder: Path, config: Fields) -> Packing | None:
        """What ``folder`` says. config: its config.json. None: nothing is packed.

        Raises ValueError, naming file and field, for what is not AWQ in four bits with zero points.
        """
        inner = config.inner("quantization_config")
        if inner.values:
            inner.text("quant_method")  # here, unlike there, it must be said
            return _awq(inner)
        for name in _FILES:
            if (folder / name).is_file():
                return _awq(Fields.read(folder / name))
        return None

    def groups(self, name: str, inputs: int) -> int:
        """How many groups the inputs of the matrix ``name`` make.

        Raises ValueError where they are no whole groups.
        """
        group = self.group or inputs
        if inputs % group:
            raise ValueError(
                f"{self.where}: the {inputs} inputs of {name} are no whole groups of {group}"
            )
        return inputs // group

    def matrix(
        self,
        fill: Fill,
        parts: Sequence[Part],
        inputs: int,
        columns: range,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Int4:
        """Read these columns of these parts, stacked; the arguments are ``Source.linear``'s.

        Raises ValueError, with the numbers, where they cut through a group or a word.
        """
        name = parts[0].name
        whole, groups = self.groups(name, inputs), self._groups_of(name, inputs, columns)
        outputs = sum(len(_words(part.name, part.rows)) for part in parts)
        codes = torch.empty(len(columns), outputs, dtype=torch.int32, device=device)
        zeros = torch.empty(len(groups), outputs, dtype=torch.int32, device=device)
        scales = torch.empty(len(groups), outputs * PER_WORD, device=device)
        begin = 0
        for name, total, rows in parts:
            every, own = len(_words(name, range(total))), _words(name, rows)
            end = begin + len(own)
            there = (columns.start, own.start)
            fill(codes[:, begin:end], f"{name}.qweight", (inputs, every), there)
            there = (groups.start, own.start)
            fill(zeros[:, begin:end], f"{name}.qzeros", (whole, every), there)
            into = scales[:, begin * PER_WORD : end * PER_WORD]
            fill(into, f"{name}.scales", (whole, total), (groups.start, rows.start))
            if not torch.equal(into, into.half().float()):
                raise ValueError(f"{name}.scales holds numbers that AWQ's float16 cannot hold")
            begin = end
        return Int4(codes, zeros, scales.half(), dtype)

    def _groups_of(self, name: str, inputs: int, columns: range) -> range:
        """The groups to which these inputs belong: whole groups, or inputs of one."""
        group = inputs // self.groups(name, inputs)
        first, last = columns.start // group, (columns.stop - 1) // group
        if first != last and (columns.start % group or columns.stop % group):
            raise ValueError(
                f"{name} has a scale for each {group} of its {inputs} inputs; a rank's part, "
                f"{columns.start} to {columns.stop}, cuts through them: use a tp that divides the "
                f"{inputs // group} groups"
            )
        return range(first, last + 1)


def _words(name: str, outputs: range) -> range:
    """The int32 in each row of the packed matrix ``name`` that hold these outputs."""
    if outputs.start % PER_WORD or outputs.stop % PER_WORD:
        raise ValueError(
            f"{name} holds {PER_WORD} outputs in a word; a rank's part, {outputs.start} to "
            f"{outputs.stop}, cuts through one: use a smaller tp"
        )
    return range(outputs.start // PER_WORD, outputs.stop // PER_WORD)


def _awq(said: Fields) -> Packing:
    method = said.text("quant_method", "gptq" if said.get("desc_act") is not None else "awq")
    if method.lower() != "awq":
        raise _unsupported(said, f"quant_method={method!r}")
    bits = said.integer(_there(said, "bits", "w_bit"), 4)
    if bits != 4:
        raise _unsupported(said, f"{bits} bits")
    layout = said.text(_there(said, "version", "format"), "gemm")
    if layout.lower() != "gemm":
        raise _unsupported(said, f"the layout {layout!r}")
    if (backend := said.text("backend", "auto")).lower() == "llm-awq":
        raise _unsupported(said, f"the layout of backend={backend!r}")
    if not said.flag("zero_point", True):
        raise _unsupported(said, "zero_point=false")
    name = _there(said, "group_size", "q_group_size")
    group = said.integer(name, 128, least=-1)
    if group == 0:
        raise said.wrong(name, "a whole number of at least 1, or -1 for all inputs")
    return Packing(None if group < 0 else group, said.where)


def _there(said: Fields, name: str, other: str) -> str:
    """In which of two spellings a field is there; the former if in neither."""
    return other if said.get(name) is None and said.get(other) is not None else name


def _unsupported(said: Fields, what: str) -> ValueError:
    return ValueError(
        f"{said.where}: {what} is not supported; packed weights must be AWQ with bits=4, "
        f"version='gemm' and zero_point=true. Take such a checkpoint, or make one from the "
        f"unquantized weights: minisgl quantize MODEL --out DIR"
    )
