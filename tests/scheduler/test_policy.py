"""Who runs next, and that nobody waits for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minisgl.core import Plan, Refusal, SamplingParams, Why
from minisgl.registry import names
from minisgl.scheduler import policy
from minisgl.scheduler.ledger import Ledger
from minisgl.trace import Trace
from tests.hash_engine import expected, hash_engine

LONG = SamplingParams(max_tokens=20, ignore_eos=True)
SHORT = SamplingParams(max_tokens=1, ignore_eos=True)


@pytest.mark.parametrize("name", names("policy"))
def test_no_decode_starves_under_a_stream_of_prompts(name: str) -> None:
    engine = hash_engine(policy=name, num_pages=80, max_step_tokens=8)
    first = engine.add([1, 2, 3], LONG)
    for i in range(20 * (policy.TURN + 1)):
        engine.add([1 + i % 9, 2 + i // 9 % 9, 5], SHORT)
        engine.step()
    assert first.finish == "length" and first.output == expected([1, 2, 3], LONG, 80)


@pytest.mark.parametrize("name", names("policy"))
def test_no_prompt_starves_under_a_stream_of_others(name: str) -> None:
    engine = hash_engine(policy=name, num_pages=40, max_running=1, depth=1)
    engine.add([1, 1, 1, 1], SHORT)
    engine.run()
    waits = engine.add([7, 7, 7], SHORT)  # nothing of it is cached; all others begin alike
    for i in range(4 * policy.PATIENCE):
        engine.add([1, 1, 1, 2 + i % 9], SHORT)
        engine.step()
    assert waits.finish == "length"


def test_longest_prefix_takes_what_is_cached_first() -> None:
    engine = hash_engine(policy="longest_prefix", max_running=1, depth=1)
    engine.add([1, 1, 1, 1], SHORT)
    engine.run()
    engine.add([7, 7, 7], SHORT)
    engine.add([1, 1, 1, 2], SHORT)
    assert engine.plan().rows[0][0] == 2


def test_any_function_of_a_ledger_is_a_policy() -> None:
    def youngest_first(ledger: Ledger) -> Plan:
        for request in ledger.decoding:
            ledger.decode(request)
        for request in sorted(ledger.waiting, key=lambda r: -r.rid):
            ledger.prefill(request, most=2)
        for request in ledger.prefilling:
            ledger.prefill(request, most=2)
        return ledger.plan

    options: dict[str, Any] = {"policy": youngest_first, "max_running": 2, "page_size": 2}
    engine = hash_engine(**options)
    asked = [engine.add([1 + i, 2, 3, 4, 5], LONG) for i in range(5)]
    assert engine.plan().rows == ((4, 2), (3, 2))
    engine.run()
    for request in asked:
        assert request.output == expected(request.prompt, LONG, 80)


@pytest.mark.parametrize("name", ["prefill_first", "mixed", "decode_first"])
def test_a_large_request_is_not_overtaken_by_small_ones(name: str) -> None:
    engine = hash_engine(policy=name, num_pages=30, depth=1)
    engine.add([1] * 5, SamplingParams(max_tokens=12, ignore_eos=True))
    engine.step()
    large = engine.add([2] * 20, SHORT)
    for i in range(12):
        engine.add([3 + i % 9, 4], SHORT)
    while large.slot is None and large.finish is None:
        record = engine.step()
        assert record is not None
        ran = {row.rid for row in record.batch.rows}
        assert max(ran) <= large.rid or large.rid in ran


def own_words(ledger: Ledger) -> Plan:
    """Decodes wait while there is a prompt, and are told why, each time in other words."""
    for request in (*ledger.prefilling, *ledger.waiting):
        ledger.prefill(request)
    if ledger.charged:
        ledger.pass_over(ledger.decoding, f"<b>prompts</b> first at {ledger.now}; {{by}}")
    for request in () if ledger.charged else ledger.decoding:
        ledger.decode(request)
    return ledger.plan


def test_a_policy_says_in_its_own_words_why_a_request_waits(tmp_path: Path) -> None:
    engine = hash_engine(policy=own_words, depth=1, max_running=9)
    for first in range(1, 4):
        engine.add([first] * 4, SamplingParams(max_tokens=3, ignore_eos=True))
        engine.step()
    engine.run()
    said = ["<b>prompts</b> first at 1; {by}", "<b>prompts</b> first at 2; {by}"]
    assert [name for name in engine.trace.explain(0).parts if "first" in name] == said
    assert engine.trace.explain(0).steps[1].refusals == (
        Refusal(0, Why.POLICY, words="<b>prompts</b> first at 1; {by}"),
    )
    assert f"r0 waits: {said[0]}" in repr(engine.trace[1])
    assert "<b>prompts" not in engine.trace.explain(0)._repr_html_()
    engine.trace.save(tmp_path / "run.jsonl")
    loaded = Trace.load(tmp_path / "run.jsonl")
    assert [record.plan for record in loaded] == [record.plan for record in engine.trace]


def test_a_reason_is_words_or_one_of_ours() -> None:
    reason: Any = 7

    def broken(ledger: Ledger) -> Plan:
        ledger.pass_over(ledger.waiting, reason)
        return ledger.plan

    engine = hash_engine(policy=broken)
    engine.add([1], SHORT)
    with pytest.raises(TypeError, match="a reason is words or one of Why, got 7"):
        engine.step()
