"""Who runs next: functions from a ledger to a plan. Write your own in a notebook.

A policy charges the requests it wants to run, in the order in which they shall stand in the batch,
and returns ``ledger.plan``. It keeps no state and changes nothing but the ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

from minisgl.core import Plan, Request, Why
from minisgl.registry import find
from minisgl.scheduler.ledger import WINDOW, Ledger

Policy = Callable[[Ledger], Plan]

# A request that has waited this many steps is served in order of arrival, whatever its prefix.
PATIENCE = 64
# Where prompts come first, decodes have their turn after this many steps without one.
TURN = 16


def prefill_first(ledger: Ledger) -> Plan:
    """Prompts before decodes, in order of arrival (SGLang's default).

    However many prompts come, decodes have one step in ``TURN`` + 1, so that none starves.
    """
    if not _is_decodes_turn(ledger):
        _prefill_in_order(ledger)
    return _decode_unless_prefilling(ledger)


def longest_prefix(ledger: Ledger) -> Plan:
    """Prompts before decodes; of the first ``WINDOW`` that wait, the most cached positions first.

    Cache-aware order (Zheng et al. 2024, section 3.2) with ageing: who has waited ``PATIENCE``
    steps goes first, so nobody starves; decodes have their turn as in ``prefill_first``.
    """
    if _is_decodes_turn(ledger):
        return _decode_unless_prefilling(ledger)
    for request in ledger.prefilling:
        ledger.prefill(request)

    def rank(request: Request) -> tuple[int, int]:
        old = request.preemptions or ledger.now - request.arrival >= PATIENCE
        return (0, request.arrival) if old else (1, -ledger.match_len(request))

    look = WINDOW if ledger.slots_left else 1  # nobody can be admitted: the first says why
    for request in sorted(islice(ledger.waiting, look), key=rank):
        if ledger.closed:
            break
        ledger.prefill(request)
    return _decode_unless_prefilling(ledger)


def mixed(ledger: Ledger) -> Plan:
    """Every decode, then prompt chunks in what is left of the step (Sarathi-Serve)."""
    for request in ledger.decoding:
        ledger.decode(request)
    _prefill_in_order(ledger)
    return ledger.plan


def decode_first(ledger: Ledger) -> Plan:
    """Drain what runs before admitting more: the baseline before continuous batching."""
    for request in ledger.decoding:
        ledger.decode(request)
    if ledger.charged:
        ledger.pass_over(ledger.prefilling, Why.DECODE_PRIORITY)
        ledger.pass_over(list(islice(ledger.waiting, 1)), Why.DECODE_PRIORITY)
    else:
        _prefill_in_order(ledger)
    return ledger.plan


def _is_decodes_turn(ledger: Ledger) -> bool:
    return bool(ledger.decoding) and ledger.steps_without_decode >= TURN


def _prefill_in_order(ledger: Ledger) -> None:
    for request in ledger.prefilling:
        ledger.prefill(request)
    for request in ledger.waiting:
        ledger.prefill(request)


def _decode_unless_prefilling(ledger: Ledger) -> Plan:
    if ledger.charged:
        ledger.pass_over(ledger.decoding, Why.PREFILL_PRIORITY)
    else:
        for request in ledger.decoding:
            ledger.decode(request)
    return ledger.plan


def find_policy(policy: str | Policy) -> Policy:
    """The policy of this name, or the function itself.

    Raises ValueError that lists the known names.
    """
    if callable(policy):
        return policy
    found: Policy = find("policy", policy)
    return found
