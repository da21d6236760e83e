"""When each frame of a video is shown, and which frames a constant rate shows. Pure; times are in seconds.

A frame of an even video is one frame, however long it lasts: the frames are what their maker meant. An uneven video
(phones make them in bad light, screen recorders always) has a meaning only in time. Where the pipeline has a rate, such
a video is brought to it: at each instant of that rate, the frame is taken that a player shows then. FFmpeg's filter
`fps=RATE:round=up` does the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

UNEVEN_SHARE = Fraction(1, 2)
"""A video is uneven if one of its frames is further off its place at the mean rate than this part of a frame. Below
that, each place has exactly one frame: times of milliseconds, and a clock that jitters, don't count."""


DENOMINATOR_MAX = 1001
"""Of a rate as a fraction: television has 30000/1001 frames a second."""


class Shown(NamedTuple):
    """When a frame is shown."""

    start_s: Fraction
    end_s: Fraction


def is_uneven(times: Sequence[Shown]) -> bool:
    """Whether the frames' times are no constant rate's."""
    if len(times) < 3:
        return False
    first_s, last_s = times[0].start_s, times[-1].start_s
    step_s = (last_s - first_s) / (len(times) - 1)
    return any(
        abs(shown.start_s - (first_s + number * step_s)) > step_s * UNEVEN_SHARE for number, shown in enumerate(times)
    )


def at_rate(times: Sequence[Shown], frames_per_second: Fraction, count_max: int) -> list[int]:
    """The numbers of the frames that are shown at each instant of a rate, from the first frame to the end of the last.

    A frame may come several times, or never. Stops after `count_max + 1`, so that a caller can see that it is too long.
    """
    numbers: list[int] = []
    number = 0
    instant_s, end_s = times[0].start_s, times[-1].end_s
    while instant_s < end_s and len(numbers) <= count_max:
        while number + 1 < len(times) and times[number + 1].start_s <= instant_s:
            number += 1
        numbers.append(number)
        instant_s = times[0].start_s + len(numbers) / frames_per_second
    return numbers
