"""Where a device's work lies on the host's clock. Plain arithmetic, in seconds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

_WAKING: Final = 1e-4  # a host that waits for a device goes on this long after it at most


class DeviceClock:
    """Places one piece of work after the other, from what a device measures between them.

    A device measures durations and no dates, and its seconds are not exactly the host's. What the
    host knows bounds the error each time: work cannot begin before it was launched nor end after
    somebody saw its end. Where somebody waited for that end, the place is known to 0.1 ms.
    """

    def __init__(self) -> None:
        self._end: float | None = None

    def place(
        self, gap: float, duration: float, launched: float, seen: float, waited: bool
    ) -> tuple[float, float]:
        """Start and end of the next piece of work.

        gap: measured by the device since the end of the last one; of the first it does not count.
        launched: the host's time before it was launched. seen: after it was seen to be over.
        waited: whether the host had been waiting for it by then.
        """
        start = launched if self._end is None else self._end + gap
        least = seen - duration - _WAKING if waited else launched
        start = min(max(start, launched, least), seen - duration)
        self._end = start + duration
        return start, self._end


class Anchor(NamedTuple):
    """A moment on two clocks: ``at`` on the other one, on the host's between the other two."""

    at: float
    before: float
    after: float

    @property
    def middle(self) -> float:
        """The host's time at which it is assumed."""
        return (self.before + self.after) / 2

    @property
    def error(self) -> float:
        """How far from that it may have been."""
        return (self.after - self.before) / 2


class HostTime:
    """The times of another clock as the host's, between two moments that are known on both.

    Where the other clock runs evenly, whatever its rate, a time between the anchors is wrong by
    ``error`` at most; where its rate changes by r in between, by r times their distance more.
    """

    def __init__(self, first: Iterable[Anchor], last: Iterable[Anchor]) -> None:
        """Of several anchors at either end that were taken narrowly takes the narrowest."""
        self._a, self._b = (min(some, key=lambda anchor: anchor.error) for some in (first, last))
        apart = self._b.at - self._a.at
        self._rate = (self._b.middle - self._a.middle) / apart if apart > 0 else 1.0
        self.error = max(self._a.error, self._b.error)

    def __call__(self, at: float) -> float:
        """The host's time when the other clock said ``at``."""
        return self._a.middle + (at - self._a.at) * self._rate
