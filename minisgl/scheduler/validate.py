"""Whether a plan, the policy's or one edited by hand, can run as it is."""

from __future__ import annotations

from minisgl.core import Plan
from minisgl.scheduler.ledger import Account, State


def validate(plan: Plan, state: State) -> dict[int, list[int]]:
    """Check a plan whole, before anything changes. Changes nothing itself.

    Returns the cached pages of each request that it admits.
    Raises TypeError for anything but a plan, ValueError naming the first request or resource with
    which it cannot run.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"a plan was expected, got {plan!r}; make a Plan or edit engine.plan()")
    account, size = Account(state), state.limits.page_size
    seen, matches = set[int](), dict[int, list[int]]()
    for rid in plan.preempt:
        victim = state.running.get(rid)
        if victim is None or victim.finish is not None or victim.preempting or rid in seen:
            raise ValueError(f"the plan preempts request {rid}, which is not running")
        seen.add(rid)
        account.preempt(victim)
    for row in plan.rows:
        try:
            rid, length = row
        except (TypeError, ValueError):
            raise ValueError(f"a row of a plan is (rid, positions), got {row!r}") from None
        if type(rid) is not int:
            raise ValueError(f"a row of a plan begins with a rid, got {rid!r}")
        if rid in seen:
            raise ValueError(f"the plan names request {rid} twice")
        seen.add(rid)
        if type(length) is not int or length < 1:
            raise ValueError(f"the plan computes {length!r} positions of request {rid}")
        if request := state.running.get(rid):
            if request.finish is not None or request.preempting:
                how = request.finish or "preempted"
                raise ValueError(f"the plan runs request {rid}, which ends ({how})")
            most = request.prefill_end - request.scheduled
            splits = 0 < most
            if most < 1:  # it decodes
                most = min(1, request.max_len - request.scheduled)
            account.grow(request, length)
        elif request := state.waiting.get(rid):
            matches[rid] = state.match(request)
            most, splits = len(request.tokens) - len(matches[rid]) * size, True
            account.admit(request, matches[rid], length)
        else:
            raise ValueError(f"the plan runs request {rid}, which neither waits nor runs")
        if length > most:
            raise ValueError(
                f"the plan computes {length} positions of request {rid}, {most} are left to do"
            )
        if splits and length < most and not state.may_chunk(request):
            raise ValueError(
                f"the plan splits the prompt of request {rid} and chunked_prefill is off"
            )
    for what, had, left in (
        ("positions", state.limits.max_step_tokens, account.tokens_left),
        ("slots", state.num_free_slots, account.slots_left),
        ("KV pages", state.pages_left, account.pages_left),
    ):
        if left < 0:
            raise ValueError(f"the plan needs {had - left} {what}, there are {had}")
    return matches
