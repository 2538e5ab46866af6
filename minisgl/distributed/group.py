"""The ranks that share each layer, what they exchange, and which part of a layer each one owns.

A group is passed to whoever needs it; there is no global one. Source: Shoeybi et al. 2019
(Megatron-LM), sec. 3.
"""

from __future__ import annotations

from typing import Final, Protocol

from torch import Tensor


class Group(Protocol):
    """Ranks 0 to ``size`` - 1 that call the same collectives in the same order."""

    rank: int
    size: int

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of every rank's x. May write it into x; use only the result."""
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """Every rank's x, equal in shape, side by side along the last dimension."""
        ...

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's x. May write it into x; use only the result."""
        ...


class Alone:
    """The group of one: every collective gives back what it got."""

    rank: int = 0
    size: int = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """x."""
        return x


ALONE: Final = Alone()


def share(total: int, group: Group, what: str) -> range:
    """This rank's part of ``total`` things that are dealt out evenly, in rank order.

    Raises ValueError, naming ``what``, where they cannot be.
    """
    if total % group.size:
        raise ValueError(
            f"{total} {what} cannot be shared evenly by tp={group.size}; "
            f"use a tp that divides {total}"
        )
    part = total // group.size
    return range(group.rank * part, (group.rank + 1) * part)


def share_kv_heads(kv_heads: int, group: Group) -> range:
    """This rank's key and value heads. With more ranks than heads, neighbours hold the same one.

    Raises ValueError where neither number divides the other.
    """
    if kv_heads >= group.size:
        return share(kv_heads, group, "key/value heads")
    if group.size % kv_heads:
        raise ValueError(
            f"{kv_heads} key/value heads cannot be repeated evenly for tp={group.size}; "
            f"use a multiple or a divisor of {kv_heads}"
        )
    head = group.rank * kv_heads // group.size
    return range(head, head + 1)
