"""``profile.plot``: steps on the clock with the kernels that they took."""

from __future__ import annotations

from matplotlib.axes import Axes

from minisgl.inspector.figures.clock import Clock
from minisgl.inspector.figures.picture import Picture, show
from minisgl.trace.profile import Profile
from minisgl.trace.timeline import account


def plot(profile: Profile, steps: range, ax: Axes | None) -> Picture | Axes:
    """Host, devices and kernels of these steps, which were profiled."""
    found = account(profile.records, steps)
    return show(Clock(profile.records, steps, found, profile.spans), ax)
