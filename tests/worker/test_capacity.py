"""How large a job may be before memory runs out at a worker."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.worker.capacity import BOUND_S, Capacity

EVENTS = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 1.0, 2.0, 3.0, 4.0])), max_size=30)
"""Jobs in order: whether each is done, and its size."""


def told(events: list[tuple[bool, float]], now_s: float = 0.0) -> Capacity:
    """A worker's, after these jobs."""
    capacity = Capacity()
    for is_done, pixels in events:
        if is_done:
            capacity.done(pixels)
        else:
            capacity.ran_out(pixels, now_s)
    return capacity


def test_the_second_shortage_makes_a_bound() -> None:
    capacity = told([(True, 2.0), (False, 8.0)])
    assert (capacity.done_max, capacity.failed_min(0.0)) == (2.0, 0.0)
    capacity.ran_out(5.0, 1.0)
    assert (capacity.done_max, capacity.failed_min(1.0)) == (2.0, 5.0)


def test_a_bound_holds_for_a_while() -> None:
    capacity = told([(False, 8.0), (False, 8.0)], now_s=100.0)
    assert capacity.failed_min(100.0 + BOUND_S - 1) == 8.0
    assert capacity.failed_min(100.0 + BOUND_S) == 0.0
    capacity.ran_out(8.0, 100.0 + BOUND_S)
    assert capacity.failed_min(100.0 + BOUND_S) == 8.0, "one more is enough to know it again"


def test_what_is_done_after_all_ends_the_bound() -> None:
    assert told([(False, 8.0), (False, 6.0), (True, 5.0)]).failed_min(0.0) == 6.0
    capacity = told([(False, 8.0), (False, 6.0), (True, 6.0)])
    assert (capacity.done_max, capacity.failed_min(0.0)) == (6.0, 0.0)
    capacity.ran_out(8.0, 0.0)
    assert capacity.failed_min(0.0) == 0.0, "it counts from the beginning"


def test_unknown_sizes_change_nothing() -> None:
    capacity = told([(True, 0.0), (False, 0.0), (False, 0.0)])
    assert (capacity.done_max, capacity.failed_min(0.0)) == (0.0, 0.0)


@given(EVENTS)
def test_what_was_done_is_below_the_bound(events: list[tuple[bool, float]]) -> None:
    capacity = told(events)
    bound = capacity.failed_min(0.0)
    assert not bound or capacity.done_max < bound
    sizes_done = [pixels for is_done, pixels in events if is_done]
    assert capacity.done_max in {0.0, *sizes_done}
    assert bound in {0.0, *(pixels for is_done, pixels in events if not is_done)}


@given(EVENTS, st.sampled_from([1.0, 2.0, 3.0, 4.0]))
def test_the_newest_holds(events: list[tuple[bool, float]], pixels: float) -> None:
    done = told([*events, (True, pixels)])
    assert done.done_max >= pixels
    assert not done.failed_min(0.0) or done.failed_min(0.0) > pixels
    failed = told([*events, (False, pixels), (False, pixels)])
    assert failed.done_max < pixels
    assert 0 < failed.failed_min(0.0) <= pixels
