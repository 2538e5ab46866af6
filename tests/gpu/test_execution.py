"""On a GPU nothing waits but who asks for tokens; memory goes back; errors name their numbers."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

import minisgl
from minisgl.core import SamplingParams
from minisgl.engine.engine import Engine

pytestmark = pytest.mark.gpu
ASK = SamplingParams(max_tokens=200, ignore_eos=True)
ATTENTION = ["fa3", "flashinfer", "fa3,triton", "flashinfer,triton", "fa3,cuda", "flashinfer,cuda"]


def load(**toggles: Any) -> Engine:
    return minisgl.load("tiny", device="cuda", dtype="bfloat16", **{"num_pages": 1024} | toggles)


def prompt(seed: int, length: int = 40) -> list[int]:
    return [20 + (seed * 7919 + i * 104729) % 1000 for i in range(length)]


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("cuda_graph", [True, False], ids=["graph", "eager"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_nothing_waits_for_the_device_in_the_steady_state(
    attention: str, cuda_graph: bool, sampled: bool, strict: None
) -> None:
    drawn = SamplingParams(
        max_tokens=200, ignore_eos=True, temperature=0.7, top_k=40, top_p=0.9, min_p=0.01
    )
    with load(attention=attention, cuda_graph=cuda_graph) as engine:
        for seed in range(6):
            engine.add(prompt(seed), drawn if sampled else ASK)
        engine.run(max_steps=60)  # kernels are compiled, graphs captured, memory is had
        engine.add(prompt(9), drawn if sampled else ASK)
        engine.run(max_steps=30)
        torch.cuda.set_sync_debug_mode("error")
        engine.add(prompt(10), drawn if sampled else ASK)  # a prompt between decode steps
        records = engine.run(max_steps=40)
        torch.cuda.set_sync_debug_mode("default")
    assert not [record.outcome.error for record in records if record.outcome.error]
    assert len(records) == 40


@pytest.mark.parametrize("cuda_graph", [True, False], ids=["graph", "eager"])
def test_spans_lie_on_the_clock_of_the_host(cuda_graph: bool) -> None:
    with load(cuda_graph=cuda_graph) as engine:
        for seed in range(4):
            engine.add(prompt(seed), ASK)
        records = engine.run(max_steps=150)
    last = 0.0
    for record in records[10:]:
        (device,) = (span for span in record.spans if span.lane == "device")
        (launch,) = (span for span in record.spans if span.name == "launch")
        (wait,) = (span for span in record.spans if span.name == "wait")
        assert launch.start <= device.start < device.end <= wait.end
        assert device.start >= last - 1e-6
        last = device.end
    account = minisgl.Trace.timeline(engine.trace)
    assert account.clocks_agree
    assert account.busy <= account.total


def test_close_gives_the_memory_back() -> None:
    load().close()  # libraries keep what they took once
    gc.collect()
    torch.cuda.empty_cache()
    free, allocated, kept = torch.cuda.mem_get_info()[0], torch.cuda.memory_allocated(), 0
    for _ in range(3):
        engine = load(num_pages=8192)
        for seed in range(4):
            engine.add(prompt(seed), ASK)
        engine.run(max_steps=50)
        assert torch.cuda.memory_allocated() > allocated + 8192 * 16 * 6 * 2 * 2 * 64 * 2 - 1
        engine.close()
        kept = torch.cuda.memory_allocated() - allocated
        del engine
        gc.collect()
    assert torch.cuda.memory_allocated() == allocated
    assert kept < 64 << 20  # a closed engine keeps what it recorded
    torch.cuda.empty_cache()
    assert free - torch.cuda.mem_get_info()[0] < 64 << 20  # graphs leave modules behind


def test_two_engines_compute_side_by_side() -> None:
    with load() as a, load(attention="triton") as b:
        asked = [engine.add(prompt(1), ASK) for engine in (a, b) for _ in range(2)]
        while a.step() or b.step():
            pass
        b.run()
        assert all(len(request.output) == 200 for request in asked)


def test_a_rewind_and_a_fork_say_the_same_tokens() -> None:
    with load(overlap=True) as engine:
        requests = [engine.add(prompt(seed), ASK) for seed in range(3)]
        engine.run(max_steps=120)
        said = [request.output for request in requests]
        with engine.fork(at=60) as twin:
            twin.run(max_steps=60)
            for request, tokens in zip(requests, said, strict=True):
                ours = twin.requests[request.rid].output
                assert ours[: len(tokens)] == tokens[: len(ours)]
        engine.rewind(to=30)
        engine.run(max_steps=90)
        for request, tokens in zip(requests, said, strict=True):
            ours = engine.requests[request.rid].output
            assert len(ours) > 60 and ours[: len(tokens)] == tokens[: len(ours)]


def test_too_many_pages_are_refused_with_the_numbers() -> None:
    total = torch.cuda.mem_get_info()[1]
    too_many = total // (16 * 6 * 2 * 2 * 64 * 2) + 1
    with pytest.raises(ValueError, match=rf"num_pages={too_many} .* need \d+ bytes, \d+"):
        load(num_pages=too_many)


def test_no_memory_for_a_fork_is_an_error_with_numbers_and_the_engine_goes_on() -> None:
    page = 16 * 6 * 2 * 2 * 64 * 2
    with load(num_pages=int(torch.cuda.mem_get_info()[0] * 0.6) // page) as engine:
        request = engine.add(prompt(1), ASK)
        engine.run(max_steps=5)
        with pytest.raises(MemoryError, match=r"need \d+ bytes on cuda.*, \d+ are free"):
            engine.fork(at=0)
        engine.run()
        assert len(request.output) == 200


def test_no_memory_in_a_step_ends_its_requests_and_the_engine_goes_on() -> None:
    with load() as engine:
        engine.add(prompt(0), ASK)
        engine.run(max_steps=20)
        free = torch.cuda.mem_get_info()[0]
        taken = torch.empty(free - (8 << 20), dtype=torch.uint8, device="cuda")
        torch.cuda.set_per_process_memory_fraction(
            torch.cuda.memory_reserved() / torch.cuda.mem_get_info()[1]
        )
        try:
            failed = [engine.add(prompt(seed, 3000), ASK) for seed in range(3)]
            with pytest.warns(RuntimeWarning, match=r"no GPU memory for the \d+ positions"):
                while failed[0].finish is None:
                    engine.step()
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert failed[0].finish == "error"
        del taken
        torch.cuda.empty_cache()
        engine.run()
        later = engine.add(prompt(5), ASK)
        engine.run()
        assert len(later.output) == 200


def test_a_graph_that_cannot_be_captured_is_replaced_with_one_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from minisgl.attention.triton import TritonAttention

    def broken(self: Any) -> None:
        torch.cuda.synchronize()

    with load(attention="triton", overlap=False) as engine:
        asked = engine.add(prompt(1), ASK)
        engine.run()
    torch.manual_seed(7)
    drawn = torch.rand(8, device="cuda"), torch.rand(8, device="cuda")
    torch.manual_seed(7)
    assert torch.equal(torch.rand(8, device="cuda"), drawn[0])
    monkeypatch.setattr(TritonAttention, "captured", broken)
    with load(attention="triton", overlap=False) as engine:
        again = engine.add(prompt(1), ASK)
        with pytest.warns(RuntimeWarning, match="no CUDA graph of 1 rows") as warned:
            engine.run()
        assert len(warned) == 1
        assert again.output == asked.output
    assert torch.equal(torch.rand(8, device="cuda"), drawn[1]), "random numbers go on"
