"""What is done of a job, on disk. Stopped in the middle of a layer, a job repeats that layer."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Final

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from minisgl.quantize.fitting import MatrixError

_UNFINISHED: Final = "unfinished"  # the folder in the new folder where finished layers are


class Work:
    """The finished layers of one job, each in a file, and the hidden states after the last."""

    def __init__(self, out: Path, key: str) -> None:
        """out: the new model's folder. key: what the job depends on.

        Raises FileExistsError if ``out`` holds anything but this very job.
        """
        self._folder = out / _UNFINISHED
        self.num_done = 0
        there = sorted(path.name for path in out.iterdir()) if out.exists() else []
        if there and _UNFINISHED not in there:
            more = f" and {len(there) - 1} more" if len(there) > 1 else ""
            raise FileExistsError(f"{out} holds {there[0]}{more}; give a new folder")
        note = self._folder / "key"
        if not note.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            note.write_text(key)
        if note.read_text() != key:
            raise FileExistsError(
                f"{out} holds an unfinished run with another model, text or group size; give a new "
                f"folder, or delete this one"
            )
        if self._states.exists():
            with safe_open(self._states, "pt") as file:
                self.num_done = int(file.metadata()["done"])

    @property
    def _states(self) -> Path:
        return self._folder / "states.safetensors"

    @property
    def layers(self) -> list[Path]:
        """The files of the layers that are done."""
        return [self._layer(index) for index in range(self.num_done)]

    def _layer(self, index: int) -> Path:
        return self._folder / f"layer-{index:05}.safetensors"

    def hidden(self) -> Tensor | None:
        """The hidden states after the layers that are done; None before the first."""
        return load_file(self._states)["hidden"] if self.num_done else None

    def keep(
        self, index: int, tensors: dict[str, Tensor], errors: list[MatrixError], hidden: Tensor
    ) -> None:
        """Note that a layer is done. Stopped in the middle of this, it is not."""
        write(self._layer(index), tensors, {"errors": json.dumps(errors)})
        write(self._states, {"hidden": hidden}, {"done": str(index + 1)})
        self.num_done = index + 1

    def errors(self, index: int) -> list[MatrixError]:
        """What ``keep`` was given."""
        with safe_open(self._layer(index), "pt") as file:
            return [MatrixError(*error) for error in json.loads(file.metadata()["errors"])]

    def finish(self) -> None:
        """Delete the unfinished folder: the whole one is there."""
        shutil.rmtree(self._folder)


def write(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, about)
    os.replace(part, path)
