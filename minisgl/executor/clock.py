"""Where a device's work lies on the host's clock. Plain arithmetic, in seconds."""

from __future__ import annotations

from typing import Final

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
