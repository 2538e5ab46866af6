"""Where a device's work lies on the host's clock. Plain arithmetic, in seconds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

_DRIFT: Final = 300e-6  # what two clocks may part by, of the time that goes by


class DeviceClock:
    """Places one piece of work after the other, from what a device measures between them.

    A device measures durations and no dates, and its seconds are not exactly the host's. What the
    host knows bounds the error each time: work cannot begin before it was launched nor end after
    somebody saw its end. A host that waits for an end wakes a little after it, sometimes much
    later; so the earliest that it ever woke tells where the device's clock stands, and only drift
    moves that. Once somebody has waited, the error is at most how late the host woke at best, and
    what the clocks have parted by since.
    """

    def __init__(self) -> None:
        self._now = 0.0  # the device's clock, at the end of the last piece of work
        self._zero: float | None = None  # the host's time when it stood at 0, at the latest
        self._moved = 0.0  # how much later than that it may be by now
        self._known = False  # whether somebody has waited since it was last found wrong

    def place(
        self, gap: float, duration: float, launched: float, seen: float, waited: bool
    ) -> tuple[float, float]:
        """Start and end of the next piece of work.

        gap: measured by the device since the end of the last one; of the first it does not count.
        launched: the host's time before it was launched. seen: after it was seen to be over.
        waited: whether the host had been waiting for it by then.
        """
        begin = self._now + gap
        self._now = begin + duration
        self._moved += _DRIFT * (gap + duration)
        start = launched if self._zero is None else self._zero + begin
        if start + self._moved < launched:  # one of the clocks has stood still
            self._known = False
        if waited:
            latest = seen - duration
            start = min(start + self._moved, latest) if self._known else latest
            self._moved, self._known = 0.0, True
        start = min(max(start, launched), seen - duration)
        self._zero = start - begin
        return start, start + duration


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
