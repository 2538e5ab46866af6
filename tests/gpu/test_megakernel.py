"""On a GPU: all layers for one token in one kernel agree with layer after layer; engines that use
it say the same tokens, go back, fork and share a process as others do.

All tests that need a GPU: pytest -m gpu.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import minisgl
from minisgl import registry
from minisgl.core import Request, SamplingParams
from minisgl.engine.engine import Engine
from minisgl.kernel.base import Kernels
from minisgl.kernel.megakernel import Megakernel
from minisgl.resolve import BULK_COPIES
from tests.gpu.test_tokens import prompts
from tests.kernel.one_token import Case, OneToken

pytestmark = pytest.mark.gpu

BF16, FP16 = torch.bfloat16, torch.float16
SMALL = Case(seen=1000)
QWEN3 = {
    "0.6B": Case(hidden=1024, inner=3072, heads=16, kv_heads=8, head_dim=128),
    "8B": Case(hidden=4096, inner=12288, heads=32, kv_heads=8, head_dim=128),
    "14B": Case(hidden=5120, inner=17408, heads=40, kv_heads=8, head_dim=128),
}
ASK = SamplingParams(max_tokens=200, ignore_eos=True)
# what may differ between two ways to compute a logit in bfloat16; of the embedded model's, in nats
CLOSE = 0.25


@pytest.fixture(scope="module", autouse=True)
def _needs_bulk_copies() -> None:
    if torch.cuda.get_device_capability() < BULK_COPIES:
        pytest.skip("needs a GPU with bulk copies")


@pytest.fixture(autouse=True)
def _freed() -> Iterator[None]:
    """Layers of the largest model leave room for the next."""
    yield
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    made: Kernels = registry.find("kernels", "cuda")()
    return made


def agree(case: Case, kernels: Kernels, calls: int = 3) -> None:
    with torch.inference_mode():
        OneToken(case, kernels, None, "cuda").agree(calls=calls)


@pytest.mark.parametrize("group", [0, 32, 128])
@pytest.mark.parametrize("name", QWEN3)
def test_layers_of_real_sizes_agree(kernels: Kernels, name: str, group: int) -> None:
    agree(replace(QWEN3[name], group=group, seen=700), kernels)


@pytest.mark.parametrize("window", [None, 1, 512, 4096])
@pytest.mark.parametrize("group", [0, 32, 128])
def test_any_number_of_positions_is_attended_to(
    kernels: Kernels, window: int | None, group: int
) -> None:
    """Call after call by one kernel, so that no call may see numbers of another."""
    with torch.inference_mode():
        case = replace(QWEN3["0.6B"], group=group, window=window)
        token = OneToken(case, kernels, None, "cuda")
        whole = Megakernel.of(token.layers, case.shape)
        for seen in (1, 3000, 2, 15, 2049, 1025, 1120, 16, 17, 1023, 129, 1):
            token.draw(seen)
            token.agree(calls=5, whole=whole)


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("group", [0, 32, 64, 128])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    ("heads", "kv_heads"), [(2, 2), (4, 2), (10, 2), (8, 1), (16, 16)], ids=str
)
def test_all_forms_of_numbers_and_heads_agree(
    kernels: Kernels, dtype: torch.dtype, group: int, head_dim: int, heads: int, kv_heads: int
) -> None:
    case = replace(SMALL, dtype=dtype, group=group, head_dim=head_dim, inner=1280)
    case = replace(case, heads=heads, kv_heads=kv_heads, normed=heads != 4, biased=heads != 10)
    agree(case, kernels)


def test_groups_of_several_chunks_agree(kernels: Kernels) -> None:
    agree(replace(SMALL, group=256, hidden=512, inner=1280), kernels)


@pytest.mark.parametrize("page_size", [1, 4, 64])
@pytest.mark.parametrize("layers", [1, 5])
@pytest.mark.parametrize("inner", [128, 640, 4224])
def test_pages_layers_and_inner_rows_of_any_size_agree(
    kernels: Kernels, page_size: int, layers: int, inner: int
) -> None:
    case = replace(SMALL, page_size=page_size, layers=layers, inner=inner, hidden=640)
    for group in (0, 128):
        agree(replace(case, group=group), kernels)


@pytest.mark.parametrize("changes", [{"head_dim": 80, "heads": 8}, {"hidden": 192}], ids=str)
def test_sizes_that_the_kernel_does_not_have_are_computed_without(
    kernels: Kernels, changes: dict[str, Any]
) -> None:
    token = OneToken(replace(SMALL, **changes), kernels, None, "cuda")
    assert Megakernel.of(token.layers, token.case.shape) is None


def load(model: str = "tiny", **toggles: Any) -> Engine:
    sizes: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16", "num_pages": 1024}
    return minisgl.load(model, **sizes | toggles)


def prompt(seed: int, length: int = 40) -> list[int]:
    return [20 + (seed * 7919 + i * 104729) % 1000 for i in range(length)]


@pytest.mark.parametrize("model", ["tiny", "tiny-awq"])
def test_an_engine_takes_the_kernel_for_steps_of_one_token_alone(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, call = list[int](), Megakernel.__call__

    def counted(self: Megakernel, *args: Any) -> Any:
        calls.append(len(args[0]))
        return call(self, *args)

    monkeypatch.setattr(Megakernel, "__call__", counted)
    with load(model, cuda_graph=False, overlap=False) as engine:
        assert engine.config.megakernel is True
        engine.add(prompt(1), SamplingParams(max_tokens=9, ignore_eos=True))
        engine.run()
        assert calls == [1] * 8  # the first token is the prompt's
        for seed in range(2):
            engine.add(prompt(seed), SamplingParams(max_tokens=9, ignore_eos=True))
        engine.run()
        assert calls == [1] * 8
    with load(model, cuda_graph=False, megakernel=False) as engine:
        engine.add(prompt(1), ASK)
        engine.run()
    assert calls == [1] * 8


def scores(request: Request) -> list[dict[int, float]]:
    """The likeliest tokens at each place of its output."""
    assert request.logprobs is not None
    return [dict(record.top) for record in request.logprobs]


def parted(ours: Request, other: Request) -> bool:
    """Whether two greedy outputs differ. Up to there scores agree, and there the choice was close:
    all within rounding."""
    pairs = enumerate(zip(ours.output, other.output, strict=True))
    at = next((i for i, (a, b) in pairs if a != b), len(ours.output))
    both = list(zip(scores(ours), scores(other), strict=True))
    for mine, theirs in both[: at + 1]:
        best = max(theirs, key=lambda token: theirs[token])
        assert best in mine and abs(mine[best] - theirs[best]) < CLOSE
    if at == len(ours.output):
        return False
    theirs = both[at][1]
    assert ours.output[at] in theirs
    assert theirs[other.output[at]] - theirs[ours.output[at]] < CLOSE
    return True


@pytest.mark.parametrize("model", ["tiny", "tiny-awq"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("cuda_graph", [True, False], ids=["graph", "eager"])
def test_tokens_and_logits_are_those_of_layer_after_layer(
    model: str, dtype: str, cuda_graph: bool
) -> None:
    ask = SamplingParams(max_tokens=48, ignore_eos=True, logprobs=5)
    made = list[list[Request]]()
    for megakernel in (True, False):
        with load(model, dtype=dtype, cuda_graph=cuda_graph, megakernel=megakernel) as engine:
            assert engine.config.megakernel is megakernel
            made.append([])
            for ids in prompts():
                made[-1].append(engine.add(ids, ask))
                engine.run()  # each alone
    differ = sum(parted(ours, other) for ours, other in zip(*made, strict=True))
    print(f"{differ} of {len(made[0])} requests part, at scores closer than rounding")
    assert differ <= len(made[0]) // 2


@pytest.mark.parametrize("model", ["tiny", "tiny-awq"])
def test_tokens_do_not_depend_on_graphs_and_overlap(model: str) -> None:
    def run(**toggles: Any) -> tuple[int, ...]:
        with load(model, megakernel=True, **toggles) as engine:
            request = engine.add(prompts()[4], ASK)
            engine.run()
            return request.output

    base = run()
    assert run(cuda_graph=False) == base
    assert run(overlap=False) == base
    assert run(cuda_graph=False, overlap=False) == base


def test_a_long_row_that_is_alone_again_goes_on_as_it_should() -> None:
    """A request is alone, then one of three, then alone: each way reads what the other stored."""
    ask = SamplingParams(max_tokens=300, ignore_eos=True, logprobs=5)
    made = list[Request]()
    for megakernel in (True, False):
        with load(megakernel=megakernel, check=True) as engine:
            made.append(engine.add(prompt(1, 1500), ask))
            engine.run(max_steps=60)
            for seed in (2, 3):
                engine.add(prompt(seed), SamplingParams(max_tokens=30, ignore_eos=True))
            engine.run()
    assert len(made[0].output) == 300
    parted(*made)


@pytest.mark.parametrize("cuda_graph", [True, False], ids=["graph", "eager"])
@pytest.mark.parametrize("model", ["tiny", "tiny-awq"])
def test_a_rewind_and_a_fork_say_the_same_tokens(model: str, cuda_graph: bool) -> None:
    with load(model, megakernel=True, cuda_graph=cuda_graph) as engine:
        request = engine.add(prompt(1), ASK)
        engine.run(max_steps=120)
        said = request.output
        with engine.fork(at=60) as twin:
            assert twin.config.megakernel is True
            while twin.step() and engine.step():  # both use the model's one kernel, in turns
                pass
            ours = twin.requests[request.rid].output
            assert len(ours) > 100 and ours[: len(said)] == said[: len(ours)]
        engine.rewind(to=30)
        engine.run()
        ours = engine.requests[request.rid].output
        assert len(ours) == 200 and ours[: len(said)] == said


def test_two_engines_compute_side_by_side() -> None:
    with load(megakernel=True) as alone:
        whole = alone.add(prompt(1), ASK)
        alone.run()
    with load(megakernel=True) as a, load("tiny-awq", megakernel=True) as b:
        ours, other = a.add(prompt(1), ASK), b.add(prompt(1), ASK)
        while any([a.step(), b.step()]):
            pass
        assert ours.output == whole.output and len(other.output) == 200


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize("cuda_graph", [True, False], ids=["graph", "eager"])
def test_nothing_waits_for_the_device_in_the_steady_state(
    cuda_graph: bool, sampled: bool, strict: None
) -> None:
    drawn = SamplingParams(max_tokens=200, ignore_eos=True, temperature=0.7, top_k=40, top_p=0.9)
    with load(megakernel=True, cuda_graph=cuda_graph) as engine:
        for seed in range(2):  # kernels are compiled, graphs captured, memory is had
            engine.add(prompt(seed), drawn if sampled else ASK)
            engine.run()
        engine.add(prompt(9), drawn if sampled else ASK)
        engine.run(max_steps=30)
        torch.cuda.set_sync_debug_mode("error")
        records = engine.run(max_steps=100)
        torch.cuda.set_sync_debug_mode("default")
    assert not [record.outcome.error for record in records if record.outcome.error]
    assert len(records) == 100


def test_close_gives_the_memory_back() -> None:
    def run() -> None:
        with load(megakernel=True) as engine:
            engine.add(prompt(1), ASK)
            engine.run()

    run()  # libraries keep what they took once
    gc.collect()
    allocated = torch.cuda.memory_allocated()
    for _ in range(3):
        run()
        gc.collect()
    assert torch.cuda.memory_allocated() == allocated
