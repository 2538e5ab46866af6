"""The runner that computes a model with torch, on one thread of its own, in launch order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import torch

from minisgl import registry
from minisgl.config import EngineConfig
from minisgl.core import Batch, KernelSpan
from minisgl.distributed.group import ALONE, Group
from minisgl.engine.runner import Launch, Snapshot, Worker
from minisgl.executor.cuda import CudaForward
from minisgl.executor.forward import Forward
from minisgl.executor.kv_pool import Contents
from minisgl.executor.profiler import Profiler
from minisgl.executor.tables import Tables
from minisgl.models.config import ModelConfig
from minisgl.models.decoder import Model
from minisgl.models.weights import Weights

P = ParamSpec("P")
R = TypeVar("R")


class TorchRunner:
    """Batches are computed while the host plans the next: torch does not hold Python's lock.

    On a GPU the calling thread queues the work, and there is no other. A runner dropped without
    ``close`` ends its thread when it is collected, or when Python exits.
    """

    workers: tuple[Worker, ...] = ()
    broken: str | None = None

    def __init__(self, forward: Forward | CudaForward, threads: int) -> None:
        self._forward: Forward | CudaForward | None = forward
        self._threads = threads
        self._profiler: Profiler | None = None  # that watches now
        self._worker: Executor = (
            ThreadPoolExecutor(1, "minisgl-device", use_threads, (threads,))
            if isinstance(forward, Forward)
            else _Here()
        )

    def launch(self, batch: Batch) -> Launch:
        """Queue a batch and return at once.

        Its ``result`` raises, each time, what computing it raised; later batches are computed all
        the same. Raises RuntimeError on a closed runner.
        """
        forward, profiler = self._open(), self._profiler
        if isinstance(forward, Forward):
            run = forward.run if profiler is None else profiler.marked(forward.run)
            return self._worker.submit(run, batch)
        start = forward.launch if profiler is None else profiler.marked(forward.launch)
        return start(batch)

    def snapshot_bytes(self, num_pages: int) -> int:
        """See ``Runner``."""
        return num_pages * self._open().memory.pool.page_bytes

    def snapshot(
        self, pages: Sequence[int], fresh: Sequence[int], base: Snapshot | None
    ) -> Snapshot:
        """See ``Runner``. It is made by the worker, after what was launched before."""
        memory = self._open().memory
        assert base is None or isinstance(base, _Snapshot), "a snapshot of another kind of runner"
        chunk = _Chunk(self._worker.submit(memory.read, fresh), len(fresh) * memory.pool.page_bytes)
        where = {page: (chunk, row) for row, page in enumerate(fresh)}
        for page in pages:
            if page not in where:
                assert base is not None, f"page {page} is neither fresh nor in a base"
                where[page] = base.where[page]
        tables = self._worker.submit(memory.copy_tables)
        return _Snapshot(where, tables, memory.tables.num_bytes)

    def restore(self, snapshot: Snapshot) -> None:
        """See ``Runner``. Waits until it is done."""
        assert isinstance(snapshot, _Snapshot), "a snapshot of another kind of runner"
        memory, done = self._open().memory, list[Future[None]]()
        for chunk, places in snapshot.by_chunk():
            pages, rows = zip(*places, strict=True)
            done.append(self._worker.submit(memory.put, pages, chunk.contents.result(), rows))
        done.append(self._worker.submit(memory.set_tables, snapshot.tables.result()))
        for future in done:
            future.result()

    def fork(self) -> TorchRunner:
        """See ``Runner``."""
        return TorchRunner(self._open().fork(), self._threads)

    @contextmanager
    def profile(self) -> Iterator[list[KernelSpan]]:
        """See ``Runner``. One engine of a process at a time; on a CPU, torch's operators and the
        C++ functions, without those that are called by others of them."""
        forward, seen = self._open(), list[KernelSpan]()
        self._settle(forward)
        with Profiler(forward.lane, forward.memory.device) as profiler:
            self._profiler = profiler
            try:
                yield seen
            finally:
                self._profiler = None
                self._settle(forward)
        seen += profiler.spans

    def close(self) -> None:
        """Finish what was launched, end the thread, forget weights and pages."""
        self._worker.shutdown(wait=True)
        forward, self._forward = self._forward, None
        if forward is not None and not isinstance(forward, Forward):
            forward.close()
            del forward
            torch.cuda.empty_cache()

    def _settle(self, forward: Forward | CudaForward) -> None:
        """Wait until all that was launched is computed."""
        if isinstance(forward, Forward):
            self._worker.submit(lambda: None).result()
        else:
            torch.cuda.synchronize(forward.memory.device)

    def _open(self) -> Forward | CudaForward:
        if self._forward is None:
            raise RuntimeError("the runner is closed; load a new engine")
        return self._forward


class _Here(Executor):
    """Calls functions at once, on the calling thread."""

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        done = Future[R]()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Pages that were copied together."""

    contents: Future[Contents]
    num_bytes: int


class _Snapshot(NamedTuple):
    where: Mapping[int, tuple[_Chunk, int]]  # page -> where its contents are
    tables: Future[Tables]
    table_bytes: int

    @property
    def parts(self) -> Mapping[int, int]:
        """See ``Snapshot``."""
        chunks = {id(chunk): chunk.num_bytes for chunk, _ in self.where.values()}
        return {**chunks, id(self.tables): self.table_bytes}

    def by_chunk(self) -> Iterator[tuple[_Chunk, list[tuple[int, int]]]]:
        """Each chunk with the (page, row) pairs that are in it."""
        places: dict[_Chunk, list[tuple[int, int]]] = {}
        for page, (chunk, row) in self.where.items():
            places.setdefault(chunk, []).append((page, row))
        return iter(places.items())


def load_runner(
    folder: Path,
    model_config: ModelConfig,
    config: EngineConfig,
    depth: int,
    group: Group = ALONE,
) -> TorchRunner:
    """Read this rank's part of the weights in ``folder`` and make a runner of them.

    config: resolved. depth: batches that may be in flight.
    Raises what ``Weights`` raises, and ValueError for layers that tp cannot share.
    """
    model = load_model(folder, model_config, config, group)
    threads = config.threads
    assert not isinstance(threads, str), "the configuration is resolved"
    return TorchRunner(make_forward(model, model_config, config, group, depth), threads)


def make_forward(
    model: Model, model_config: ModelConfig, config: EngineConfig, group: Group, depth: int
) -> Forward | CudaForward:
    """Pages and tables for a model, on its device.

    Raises MemoryError, with the bytes they need, where a GPU has no room for them.
    """
    if model.device.type == "cpu":
        return Forward(model, model_config, config, group, depth)
    kernels = registry.find("kernels", config.kernels)()
    return CudaForward(model, model_config, config, group, depth, kernels)


def load_model(
    folder: Path, model_config: ModelConfig, config: EngineConfig, group: Group = ALONE
) -> Model:
    """This rank's part of the model in ``folder``, as ``config``, which is resolved, says."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    kernels = registry.find("kernels", config.kernels)()
    quantization = registry.find("quantization", config.quantization or "stored")
    device, packing = torch.device(config.device), model_config.packing
    with Weights(folder, dtype, device, kernels, quantization, packing) as weights:
        if model_config.tied:
            weights.ignore("lm_head.weight")  # many checkpoints store the tied head all the same
        model: Model = registry.find("model", model_config.architecture)(
            weights, model_config, group
        )
    return model


def use_threads(count: int) -> None:
    """Set how many CPU threads torch uses for what the calling thread computes.

    OpenMP and MKL keep that number per calling thread, so two engines do not change each other's.
    The call after it counts: torch reads the process-wide default, which set_num_threads changes
    too, on a thread's first look, and the default may be another engine's by then.
    """
    torch.set_num_threads(count)
    torch.get_num_threads()
