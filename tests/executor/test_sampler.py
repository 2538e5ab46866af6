"""Tokens are drawn as transformers' processors say, whoever else is in the batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minisgl.core import Draw, Row, SamplingParams
from minisgl.executor.logprobs import of_tokens
from minisgl.executor.noise import gumbel, row_keys
from minisgl.executor.penalties import Penalties
from minisgl.executor.sampler import choose, draw_few, least_kept, scaled
from minisgl.executor.tables import Staging

VOCAB = 50
CPU = torch.device("cpu")
PROMPT, OUTPUT = (3, 4, 4, 5), (5, 6, 6, 6)


def logits(rows: int, seed: int = 0, width: int = VOCAB) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3


def row(sampling: SamplingParams, slot: int = 0, seed: int = 0, made: int = 0) -> Row:
    draw = None if sampling.plain else Draw(seed, made, None, ())
    return Row(slot, slot, 0, 1, None, 0, (), True, sampling, draw)


def penalties(*slots: int) -> Penalties:
    out = Penalties(CPU)
    for slot in slots:
        out.begin(slot, (PROMPT, OUTPUT), VOCAB)
    return out


def drawn(scores: Tensor, sampling: SamplingParams, n: int, seed: int = 0) -> Tensor:
    """Tokens for ``n`` output indexes of one request: (n,)."""
    rows = [row(sampling, seed=seed, made=i) for i in range(n)]
    return choose(scores.expand(n, -1), rows, penalties(0), Staging(1, CPU))


def says_transformers(scores: Tensor, sampling: SamplingParams) -> Tensor:
    """transformers' probabilities; OpenAI's formula for the penalties it does not have."""
    processors = LogitsProcessorList()
    if sampling.biases:
        biases: Any = {(token,): bias for token, bias in sampling.biases}
        processors.append(SequenceBiasLogitsProcessor(biases))
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    past: Any = torch.tensor([PROMPT + OUTPUT])
    every: Any = scores[None]
    scores = processors(past, every)[0]
    for token in set(OUTPUT):
        scores[token] -= sampling.presence_penalty
        scores[token] -= sampling.frequency_penalty * OUTPUT.count(token)
    processors = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
    if sampling.top_k > 0:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        processors.append(MinPLogitsWarper(sampling.min_p))
    every = scores[None]
    return processors(past, every)[0].softmax(-1)


CASES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 2**40},
    {"top_p": 0.6},
    {"top_p": 1e-9},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"repetition_penalty": 1.7},
    {"presence_penalty": 1.5, "frequency_penalty": -0.5},
    {"logit_bias": {3: 2.5, 5: -100.0, 49: 4.0}},
    {"logit_bias": {3: 2.5, 6: -1.0}, "repetition_penalty": 1.7, "top_k": 9},
    {"top_k": 12, "top_p": 0.8, "min_p": 0.02, "temperature": 1.6, "repetition_penalty": 0.6},
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_filtered_probabilities_are_those_of_transformers(
    case: dict[str, Any], seed: int
) -> None:
    """Their order included: penalties, temperature, top_k, top_p, min_p."""
    sampling = SamplingParams(**{"temperature": 1.0} | case)
    raw, want = logits(1, seed), says_transformers(logits(1, seed)[0], sampling)
    weights = [torch.tensor([getattr(sampling, name)]) for name in _WEIGHTS]
    raw = raw.clone()
    for token, bias in sampling.biases:
        raw[0, token] += bias
    scores = penalties(0).applied(raw, torch.tensor([0]), *weights)
    warm = scaled(scores, torch.tensor([sampling.temperature]))
    k = sampling.top_k if 0 < sampling.top_k < VOCAB else VOCAB
    ordered = warm.sort(-1, descending=True).values
    limits = torch.tensor([k]), torch.tensor([sampling.top_p])
    least = least_kept(ordered, warm.logsumexp(-1), *limits)
    least = least.clamp(min=math.log(max(sampling.min_p, 1e-30)))
    got = warm.masked_fill(warm < least, -torch.inf).softmax(-1)[0]
    assert torch.equal(got > 0, want > 0)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4)


_WEIGHTS = ("repetition_penalty", "presence_penalty", "frequency_penalty")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_are_drawn_with_these_probabilities(case: dict[str, Any]) -> None:
    """Chi-square over 20,000 output indexes of one seed; penalties see one and the same past."""
    sampling = SamplingParams(**{"temperature": 1.0} | case)
    scores, n = logits(1, 5)[0], 20_000
    want = says_transformers(scores.clone(), sampling).double()
    if sampling.penalises:  # each draw would be counted: every row has a slot of its own
        n = 2000
        rows = [row(sampling, slot=i, made=i) for i in range(n)]
        tokens = choose(scores.expand(n, -1), rows, penalties(*range(n)), Staging(1, CPU))
    else:
        tokens = drawn(scores, sampling, n)
    counts = tokens.bincount(minlength=VOCAB).double()
    assert not counts[want == 0].any(), "a token that was filtered out was drawn"
    rare = want * n < 5  # these count as one
    seen, hoped = (torch.cat([x[~rare], x[rare].sum()[None]]) for x in (counts, want * n))
    statistic = float(((seen - hoped) ** 2 / hoped.clamp(min=1)).sum())
    assert statistic < len(seen) + 4 * math.sqrt(2 * len(seen)), statistic


def test_greedy_rows_take_the_largest_and_leave_the_logits_alone() -> None:
    scores = logits(4)
    before = scores.clone()
    greedy, hot = SamplingParams(), SamplingParams(temperature=2.0)
    cold = SamplingParams(temperature=1e-9, top_k=3)
    rows = [row(greedy), row(hot), row(SamplingParams(logprobs=2)), row(cold)]
    tokens = choose(scores, rows, penalties(), Staging(1, CPU))
    best = scores.argmax(-1)
    assert tokens[[0, 2, 3]].tolist() == best[[0, 2, 3]].tolist()
    assert torch.equal(scores, before)
    assert torch.equal(choose(scores, [row(greedy)] * 4, penalties(), Staging(1, CPU)), best)


def test_a_row_draws_the_same_in_any_batch() -> None:
    kinds = [
        SamplingParams(temperature=1.0),
        SamplingParams(),
        SamplingParams(temperature=0.7, top_p=0.9),
        SamplingParams(temperature=1.3, top_k=9, min_p=0.01),
        SamplingParams(temperature=1.0, frequency_penalty=2.0),
        SamplingParams(repetition_penalty=1.5),
        SamplingParams(logit_bias={4: 100.0}),
        SamplingParams(temperature=1.0, logit_bias={7: 3.0, 8: -3.0}, presence_penalty=1.0),
    ]
    scores = logits(30)
    rows = [row(kinds[i % 8], slot=i, seed=i % 4 - 2, made=i // 3) for i in range(30)]
    slots = range(30)
    together = choose(scores, rows, penalties(*slots), Staging(1, CPU))
    for order in (list(reversed(slots)), [7], [4, 5, 10], list(range(0, 30, 6))):
        some = choose(scores[order], [rows[i] for i in order], penalties(*slots), Staging(1, CPU))
        assert some.tolist() == together[order].tolist()


def test_a_bias_changes_its_own_rows_tokens_alone() -> None:
    scores = logits(4)
    best = scores.argmax(-1).tolist()
    worst = int(scores[1].argmin())
    biased = SamplingParams(logit_bias={worst: 100.0, best[1]: -100.0})
    plain = SamplingParams(logprobs=0)
    rows = [row(plain), row(biased), row(SamplingParams()), row(biased)]
    rows[3] = row(SamplingParams(logit_bias={best[3]: -100.0}))
    tokens = choose(scores, rows, penalties(), Staging(1, CPU)).tolist()
    assert tokens[:3] == [best[0], worst, best[2]]
    assert tokens[3] == int(scores[3].topk(2).indices[1])


def test_seeds_and_indexes_draw_apart() -> None:
    flat, sampling = torch.zeros(VOCAB), SamplingParams(temperature=1.0)
    draws = [drawn(flat, sampling, 400, seed) for seed in (0, 1, -1, 2**63 - 1)]
    for i, one in enumerate(draws):
        for other in draws[i + 1 :]:
            assert (one == other).float().mean() < 0.08  # by chance 0.02
            assert (one[1:] == other[:-1]).float().mean() < 0.08


def test_noise_is_gumbel_and_uncorrelated() -> None:
    keys = row_keys(np.arange(200), np.zeros(200, np.int64))
    noise = gumbel(torch.from_numpy(keys), torch.arange(1000)).double()
    assert noise.isfinite().all()
    assert abs(noise.mean() - 0.5772) < 0.01 and abs(noise.var() - math.pi**2 / 6) < 0.02
    centred = noise - noise.mean()
    for shift in ((0, 1), (1, 0), (1, 1)):
        product = centred * centred.roll(shift, (0, 1))
        assert abs(product.mean()) < 0.02


def test_noise_is_what_the_paper_says_of_one_number() -> None:
    """The same hash in plain integers: no device may compute another."""

    def mixed(state: int) -> int:
        state &= 2**64 - 1
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        return state ^ state >> 31

    gamma, seed, made, token = 0x9E3779B97F4A7C15, -5, 3, 17
    key = mixed(mixed(seed + gamma) + made * gamma + gamma)
    uniform = ((mixed(key + (token + 1) * gamma) >> 32) + 0.5) / 2**32
    keys = torch.from_numpy(row_keys(np.array([seed]), np.array([made])))
    want = -math.log(-math.log1p(-uniform))
    assert float(gumbel(keys, torch.tensor([token]))) == pytest.approx(want, rel=1e-5)


def test_extreme_logits_and_parameters_draw_a_token_that_is_allowed() -> None:
    wild = torch.tensor([[1e30, -1e30, 0.0, 1e30], [-3e38, -3e38, -3e38, 3e38], [0.0] * 4])
    for sampling in (
        SamplingParams(temperature=1e-5, top_p=1e-300),
        SamplingParams(temperature=100.0, top_k=2**62, min_p=1e-300),
        SamplingParams(temperature=1.0, top_p=1 - 1e-16, min_p=1.0),
    ):
        rows = [row(sampling, made=i) for i in range(3)]
        tokens = choose(wild, rows, penalties(), Staging(1, CPU)).tolist()
        assert tokens[0] in (0, 3) and tokens[1] == 3 and 0 <= tokens[2] < 4


def test_equal_logits_stay_together() -> None:
    scores = torch.tensor([1.0, 2, 2, 0])
    sampling = SamplingParams(temperature=1.0, top_k=1)
    assert set(drawn(scores, sampling, 50).tolist()) == {1, 2}


def test_ordering_few_logits_or_all_gives_the_same_tokens() -> None:
    rows, width = 3000, 300
    scores = logits(rows, width=width) * torch.linspace(0.01, 2, rows)[:, None]
    scores[::7, 100:] = 1.0  # many equals
    keys = torch.from_numpy(row_keys(np.arange(rows), np.arange(rows)))
    top_k = torch.randint(1, width + 1, (rows,), generator=torch.Generator().manual_seed(1))
    top_k[::3] = width
    top_p = torch.linspace(0.01, 1, rows).roll(777)
    least = torch.full((rows, 1), -torch.inf)
    least[::2] = -3.0
    limits = top_k, top_p, least
    whole = draw_few(scores, keys, *limits, width)
    for few in (1, 2, 16, 64, 200):
        assert torch.equal(draw_few(scores, keys, *limits, few), whole)


def test_low_precision_logits_are_sampled_in_float32() -> None:
    scores = logits(6).bfloat16()
    sampling = SamplingParams(temperature=0.9, top_p=0.9, presence_penalty=1.0)
    rows = [row(sampling, slot=i, made=i) for i in range(6)]
    one = choose(scores, rows, penalties(*range(6)), Staging(1, CPU))
    assert torch.equal(one, choose(scores.float(), rows, penalties(*range(6)), Staging(1, CPU)))


def test_penalties_count_what_is_sampled_and_a_slot_begins_anew() -> None:
    counts, flat = penalties(2), torch.zeros(1, VOCAB)
    sampling = SamplingParams(presence_penalty=2.0)
    seen = []
    for _ in range(VOCAB - len(set(OUTPUT))):  # greedy: each token once, those of the output last
        seen += choose(flat, [row(sampling, slot=2)], counts, Staging(1, CPU)).tolist()
    assert sorted({*seen, *OUTPUT}) == list(range(VOCAB)) and len(set(seen)) == len(seen)
    twin = Penalties(CPU)
    twin.copy_(counts)
    counts.begin(2, ((1,), ()), VOCAB)
    assert choose(flat, [row(sampling, slot=2)], counts, Staging(1, CPU)).tolist() == [0]
    assert choose(flat, [row(sampling, slot=2)], twin, Staging(1, CPU)).tolist() == [0]
    assert counts.num_bytes == twin.num_bytes > 0 and Penalties(CPU).num_bytes == 0


def test_logprobs_are_log_softmax_with_ranks_and_the_likeliest() -> None:
    scores, tokens = logits(3), torch.tensor([4, 9, 2])
    rows = [row(SamplingParams(logprobs=n)) for n in (0, 5)] + [row(SamplingParams())]
    got = of_tokens(scores, tokens, rows)
    want = scores.log_softmax(-1)
    assert got[2] is None
    for i, n in enumerate((0, 5)):
        record = got[i]
        assert record is not None and len(record.top) == n
        assert record.logprob == pytest.approx(float(want[i, tokens[i]]), abs=1e-5)
        assert record.rank == int((want[i] > want[i, tokens[i]]).sum()) + 1
        best = want[i].topk(n)
        assert [token for token, _ in record.top] == best.indices.tolist()
        assert [value for _, value in record.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_more_logprobs_than_the_vocabulary_has_are_all_of_them() -> None:
    (record,) = of_tokens(logits(1, width=4), torch.tensor([1]), [row(SamplingParams(logprobs=20))])
    assert record is not None and len(record.top) == 4
