"""The device's work lies on the host's clock: bounded error, whatever the two clocks do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from minisgl.executor.clock import DeviceClock


@given(
    rate=st.floats(-200e-6, 200e-6),
    steps=st.lists(
        st.tuples(
            st.floats(0, 5e-4), st.floats(1e-5, 5e-2), st.floats(0, 9e-5), st.floats(0, 100.0)
        ),
        min_size=1,
        max_size=200,
    ),
)
def test_work_that_is_waited_for_lies_within_the_time_of_waking(
    rate: float, steps: list[tuple[float, float, float, float]]
) -> None:
    """rate: how much faster the device's clock runs; each step: the way to the device, its
    duration, how long the host takes to wake, and how long nothing runs before."""
    clock, now, last = DeviceClock(), 100.0, 0.0
    for way, duration, waking, idle in steps:
        launched = now + idle
        start = launched + way
        end, before = start + duration, last
        last, now = end, end + waking
        measured = ((start - before) * (1 + rate), duration * (1 + rate))
        begin, stop = clock.place(*measured, launched, now, True)
        assert launched - begin <= duration * abs(rate) + 1e-9
        assert stop <= now + 1e-9
        assert abs(stop - end) <= 1e-4 + duration * abs(rate) + 1e-9


def test_steps_in_flight_follow_one_another_by_the_device_alone() -> None:
    clock = DeviceClock()
    places = [clock.place(2e-6, 3e-3, 0.0, 0.01, False) for _ in range(3)]
    assert places[0][0] == 0.0
    for before, after in zip(places, places[1:], strict=False):
        assert abs(after[0] - before[1] - 2e-6) < 1e-12


def test_what_was_launched_later_cannot_have_begun_before() -> None:
    clock = DeviceClock()
    clock.place(0.0, 1e-3, 0.0, 0.01, False)
    assert clock.place(1e-6, 1e-3, 5.0, 5.01, False)[0] == 5.0
