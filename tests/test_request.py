"""A request in a notebook: its life in tokens, and its text."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.core import SamplingParams
from minisgl.request import Request
from tests.hash_engine import hash_engine
from tests.scheduler.test_workloads import Options, Workload, engines, workloads
from tests.seen import Seen

HOSTILE = "<script>alert(1)</script>\x1b[2J\u202e"


def life(request: Request) -> dict[str, int]:
    """The parts of a request's bar."""
    labels = Seen(request._repr_html_()).labels
    said = labels[0].removeprefix("tokens: ").split(", ") if labels else []
    return {name: int(n) for name, _, n in (part.rpartition(" ") for part in said)}


@settings(max_examples=50)
@given(workloads, engines, st.integers(0, 6))
def test_a_requests_bar_is_its_whole_life(workload: Workload, options: Options, steps: int) -> None:
    engine = hash_engine(**options)
    for prompt, sampling in workload:
        engine.add(prompt, sampling)
    engine.run(max_steps=steps)
    for request in engine.requests.values():
        parts, page = life(request), request._repr_html_()
        of_prompt = ("reused", "prefill", "prompt to come")
        assert sum(parts.get(name, 0) for name in of_prompt) == request.prompt_len
        assert parts.get("output", 0) == len(request.output)
        if not request.preemptions:
            assert parts.get("reused", 0) == request.cached
        if request.finish is None:
            to_come = request.sampling.max_tokens - len(request.output)
            assert parts.get("at most to come", 0) == to_come
        else:
            assert "at most to come" not in parts
        seen = Seen(page)
        assert seen.words.startswith(f"Request {request.rid} {request.state}: ")
        assert seen.facts["output"] == " ".join(map(str, request.output))
        assert page == request._repr_html_()


def test_a_request_shows_only_the_sampling_that_was_asked_for() -> None:
    engine = hash_engine(num_pages=200)
    plain = engine.add([1, 2], SamplingParams())
    drawn = engine.add([1, 2], SamplingParams(temperature=0.5, seed=3, stop_token_ids=[4]))
    longer = engine.add([1, 2], SamplingParams(max_tokens=900))
    facts = Seen(plain._repr_html_()).facts
    assert facts["sampling"] == "as by default" and "clipped" not in facts
    assert Seen(longer._repr_html_()).facts["clipped"] == "max_tokens 900 asked, 198 fit"
    asked = Seen(drawn._repr_html_()).facts["sampling"]
    assert asked.split(", ", 1)[0] == "temperature=0.5"
    assert "seed=3" in asked and "stop_token_ids=(4,)" in asked and "top_k" not in asked


def test_text_and_errors_of_a_request_stay_text_and_are_cut() -> None:
    request = Request(0, [1, 2, 3], 2, SamplingParams(), decode=lambda ids: HOSTILE * 1000)
    request.error, request.finish = HOSTILE, "error"
    page = request._repr_html_()
    facts = Seen(page).facts
    assert facts["prompt"].startswith("<script>alert(1)</script>\\x1b[2J\\u202e")
    assert facts["prompt"].endswith("…") and len(page) < 6_000
    assert facts["error"] == "<script>alert(1)</script>\\x1b[2J\\u202e"


def test_what_the_cache_gave_is_a_part_of_its_own() -> None:
    engine = hash_engine(page_size=2, depth=1)
    longest = SamplingParams(max_tokens=5, ignore_eos=True)
    engine.add([1, 2, 3, 4, 5], longest)
    engine.step()
    second = engine.add([1, 2, 3, 4, 6], longest)
    engine.step()
    assert second.cached == 4
    parts = {"reused": 4, "prefill": 1, "output": 1, "at most to come": 4}
    assert life(second) == parts
    engine.run()
    assert life(second) == {"reused": 4, "prefill": 1, "output": 5}


def test_an_aborted_request_says_what_was_never_computed() -> None:
    engine = hash_engine(max_running=1)
    engine.add([1, 2], SamplingParams(max_tokens=4, ignore_eos=True))
    waiting = engine.add([3, 2, 1], SamplingParams(max_tokens=4, ignore_eos=True))
    engine.step()
    engine.abort(waiting.rid)
    assert life(waiting) == {"prompt to come": 3}
