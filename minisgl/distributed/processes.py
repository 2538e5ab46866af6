"""A group whose ranks are processes, each on a device of its own: gloo on CPUs, NCCL on GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor


class Lost(RuntimeError):
    """A collective failed, so this rank no longer keeps step with the others."""


class Processes:
    """This process's place among ``size``. It is torch's default group here: one to a process.

    num_collectives: how many have been computed, each on all ranks.
    """

    def __init__(
        self, rank: int, size: int, device: torch.device, meeting: Path, patience: float
    ) -> None:
        """Meet the others; returns once all are there.

        meeting: a file that does not exist yet, the same on every rank; it may be removed once all
        ranks have met. patience: seconds that a collective waits for the others.
        """
        self.rank, self.size, self.num_collectives = rank, size, 0
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=meeting.as_uri(),
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=patience),
            device_id=device if device.type == "cuda" else None,
        )
        self.all_reduce(torch.zeros(1, device=device))  # connects, which NCCL would do later
        self.num_collectives = 0

    def all_reduce(self, x: Tensor) -> Tensor:
        """See ``Group``."""
        with self._together():
            dist.all_reduce(x)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """See ``Group``."""
        parts = [torch.empty_like(x) for _ in range(self.size)]
        with self._together():
            dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, -1)

    def broadcast(self, x: Tensor) -> Tensor:
        """See ``Group``."""
        with self._together():
            dist.broadcast(x, 0)
        return x

    def leave(self) -> None:
        """Close the connections."""
        dist.destroy_process_group()

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise Lost(f"a collective failed: {str(error).splitlines()[0]}") from error
        self.num_collectives += 1
