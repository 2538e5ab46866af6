"""Engines over the hash oracle, and what they must answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minisgl.config import EngineConfig
from minisgl.core import Logprob, Request, SamplingParams
from minisgl.engine.codec import Codec
from minisgl.engine.engine import Engine
from minisgl.engine.runner import HashRunner, drawn_token, hash_logprob
from minisgl.scheduler.policy import Policy, find_policy
from minisgl.scheduler.replay import fresh
from minisgl.scheduler.scheduler import Scheduler

VOCAB = 13
EOS = 0


def hash_engine(
    num_pages: int = 40,
    page_size: int = 1,
    policy: str | Policy = "prefill_first",
    depth: int = 2,
    runner: Callable[[HashRunner], Any] = lambda runner: runner,
    codec: Codec | None = None,
    **options: Any,
) -> Engine:
    """An engine whose model is the hash oracle; every step is checked."""
    fields: dict[str, Any] = {
        "num_pages": num_pages,
        "page_size": page_size,
        "policy": policy,
        "overlap": depth > 1,
        "runner": "hash",
        "check": True,
        "max_running": 4,
        "max_step_tokens": 64,
        "max_seq_len": num_pages * page_size,
    }
    config = EngineConfig(**fields | options)
    limits = config.limits
    oracle = HashRunner(num_pages, page_size, limits.max_running, VOCAB)
    engine = Engine(fresh_scheduler(config), runner(oracle), config, vocab_size=VOCAB, codec=codec)
    engine.depth = depth
    return engine


def fresh_scheduler(config: EngineConfig) -> Scheduler:
    """The scheduler of a configuration before anything happened."""
    return fresh(config, {EOS}, find_policy(config.policy))


def expected(prompt: Sequence[int], sampling: SamplingParams, room: int) -> tuple[int, ...]:
    """What the hash model says to one prompt, with no cache and no schedule.

    sampling: the request's own, whose seed is known. room: positions of the context.
    """
    tokens = list(prompt)
    for made in range(min(sampling.max_tokens, room - len(prompt))):
        seen = tuple(token + 1 for token in tokens)
        assert sampling.greedy or sampling.seed is not None, "whoever draws has a seed"
        tokens.append(drawn_token(seen, sampling, made, VOCAB))
        if tokens[-1] == EOS and not sampling.ignore_eos or tokens[-1] in sampling.stop_token_ids:
            break
    return tuple(tokens[len(prompt) :])


def logprobs_are_right(request: Request) -> bool:
    """Whether a request has the logprobs that it asked for, prompt and output, and no others.

    An aborted one may have less of its prompt.
    """
    tokens, sampling = request.prompt + request.output, request.sampling
    says = [
        hash_logprob(tuple(token + 1 for token in tokens[:n]), tokens[n])
        for n in range(1, len(tokens))
    ]
    prompt: list[Logprob | None] = [None, *says[: request.prompt_len - 1]]
    got = request.prompt_logprobs
    if got is not None and request.finish == "abort":
        prompt = prompt[: len(got)]
    want = None if sampling.prompt_logprobs is None else tuple(prompt)
    output = None if sampling.logprobs is None else tuple(says[request.prompt_len - 1 :])
    return (got, request.logprobs) == (want, output)


def state(engine: Engine) -> str:
    """Everything the scheduler knows, as text: equal texts mean equal states."""
    scheduler = engine._scheduler
    pool = scheduler.pool
    requests = [
        [getattr(request, name) for name in request.__slots__ if name != "decode"]
        for request in (*scheduler.waiting.values(), *scheduler.running.values())
    ]
    known = [list(pool.nodes()), pool.counts, pool._free, scheduler._free_slots]
    queue = [entry[:2] for entry in getattr(pool._cache, "_queue", ())]
    return repr((requests, known, queue, scheduler._in_flight, scheduler.gauges, scheduler.step))
