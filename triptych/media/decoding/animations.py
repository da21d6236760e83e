"""Decodes the frames of animated PNG and WebP by Pillow, which lays each over those before it, as browsers do."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction

from PIL import Image, ImageOps

from triptych.errors import InvalidRequest
from triptych.media.decoding import headers
from triptych.media.decoding.headers import File
from triptych.media.decoding.pixels import IMAGE_ERRORS, in_8_bits, in_srgb
from triptych.media.decoding.timing import Shown

TICKS_PER_S = 10**6
"""Pillow gives times in milliseconds as floats; neither format's own are finer than this."""


def frames(file: File) -> Iterator[tuple[Image.Image, Shown]]:
    """Yield each frame in sRGB, upright, and when it is shown. Raises InvalidRequest."""
    try:
        with Image.open(io.BytesIO(file.data), formats=("PNG", "WEBP")) as opened:
            first = 1 if opened.info.get("default_image") else 0  # a picture for programs that know no animations
            start_s = Fraction(0)
            for number in range(first, getattr(opened, "n_frames", 1)):
                opened.seek(number)
                opened.load()
                duration_s = Fraction(round(opened.info.get("duration", 0) * TICKS_PER_S / 1000), TICKS_PER_S)
                upright = ImageOps.exif_transpose(opened)
                upright.info = opened.info
                yield in_srgb(file, in_8_bits(upright)), Shown(start_s, start_s + duration_s)
                start_s += duration_s
    except (InvalidRequest, MemoryError):
        raise
    except (*IMAGE_ERRORS, EOFError) as error:
        raise headers.refusal(file) from error
