"""What decoding gives: pictures, frames, sound; and how the pieces of a file become one value. No decoders."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from triptych.errors import InvalidRequest
from triptych.media.decoding import bounds, timing
from triptych.media.decoding.headers import IMAGE, File
from triptych.media.decoding.timing import Shown


class Frames(list[Image.Image]):
    """A video's frames, and how many a second has."""

    frames_per_second = 0.0
    """0 where the file doesn't say it."""


class Frame(NamedTuple):
    """A picture, or one frame of a video."""

    picture: Image.Image
    shown: Shown | None = None
    """When, where the file says that."""
    frames_per_second: Fraction | None = None
    """The video's mean rate, where the file says that."""


class Sound(NamedTuple):
    """Sound in memory. Whole numbers of up to 24 bits are exact: a sample of 16 bits is its number over 32768."""

    samples_CN: npt.NDArray[np.float32]
    sample_rate: int
    """In Hz."""


Decoded = Image.Image | Frames | Sound
"""A picture, a video's frames, or sound."""


def whole(file: File, found: Sequence[Frame | Sound]) -> Decoded:
    """A file's pieces as one value; a video of uneven times at the rate that is wanted."""
    sounds = [piece for piece in found if isinstance(piece, Sound)]
    if sounds:
        return Sound(np.concatenate([piece.samples_CN for piece in sounds], axis=1), sounds[0].sample_rate)
    pictures = [piece for piece in found if isinstance(piece, Frame)]
    if file.kind == IMAGE:
        return pictures[0].picture
    times = [piece.shown for piece in pictures]
    rate, numbers = evened(file, times, pictures[0].frames_per_second)
    frames = Frames(pictures[number].picture for number in numbers)
    frames.frames_per_second = float(rate)
    return frames


def evened(file: File, times: Sequence[Shown | None], rate: Fraction | None) -> tuple[Fraction, Sequence[int]]:
    """The rate of a video, and which of its frames it has there. Raises InvalidRequest if these are too many."""
    known = [shown for shown in times if shown is not None]
    if len(known) < len(times):
        return rate or Fraction(0), range(len(times))
    wanted = Fraction(file.frames_per_second).limit_denominator(timing.DENOMINATOR_MAX)
    if wanted and timing.is_uneven(known):
        numbers = timing.at_rate(known, wanted, bounds.VIDEO_FRAMES_MAX)
        if len(numbers) > bounds.VIDEO_FRAMES_MAX:
            shown_as = f"more than {bounds.VIDEO_FRAMES_MAX} frames at {file.frames_per_second:g} a second"
            raise InvalidRequest(file.place, shown_as, f"at most {bounds.VIDEO_FRAMES_MAX}")
        return wanted, numbers
    length_s = known[-1].end_s - known[0].start_s
    return rate or (len(known) / length_s if length_s > 0 else Fraction(0)), range(len(times))
