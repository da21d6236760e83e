"""Animations keep every frame, even equal neighbours, as Pillow and FFmpeg read them."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from triptych.media import animation, encoding

SIDES = st.integers(1, 40)


def grey(level: int, width: int = 8, height: int = 8) -> Image.Image:
    return Image.new("RGB", (width, height), (level, level, level))


def read(data: bytes) -> list[tuple[float, Image.Image]]:
    """Each frame's time in seconds, and the frame, as Pillow reads them."""
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.info["loop"] == 0
        return [(frame.info["duration"] / 1000, frame.convert("RGB")) for frame in ImageSequence.Iterator(opened)]


@given(st.lists(st.sampled_from((0, 0, 90, 255)), min_size=2, max_size=12), SIDES, SIDES)
def test_every_frame_stays(levels: Sequence[int], width: int, height: int) -> None:
    frames = [grey(level, width, height) for level in levels]
    for data in (animation.gif(frames, 6), animation.apng(frames, 0.06)):
        found = read(data)
        assert [seconds for seconds, _ in found] == pytest.approx([0.06] * len(frames))
        assert [np.asarray(frame).tolist() for _, frame in found] == [np.asarray(frame).tolist() for frame in frames]


@pytest.mark.parametrize("codec", ["gif", "apng"])
def test_ffmpeg_reads_the_same(codec: str) -> None:
    frames = [grey(level) for level in (10, 10, 200, 200, 200, 10)]
    data = animation.gif(frames, 6) if codec == "gif" else animation.apng(frames, 0.06)
    with av.open(io.BytesIO(data), format=codec) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [int(frame[0, 0, 0]) for frame in shown] == [10, 10, 200, 200, 200, 10]


def expected(frame: Image.Image, output_format: str) -> Image.Image:
    """As RGB: a GIF's transparency is laid over white, a PNG keeps it."""
    if frame.mode != "RGBA" or output_format == "png":
        return frame.convert("RGB")
    page = Image.new("RGB", frame.size, "white")
    page.paste(frame, mask=frame)
    return page


@pytest.mark.parametrize("output_format", ["gif", "png"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_results_have_as_many_frames_as_were_made(output_format: str, mode: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (3, 16, 24, len(mode)), np.uint8)
    made = [Image.fromarray(one[..., 0] if mode == "L" else one) for one in noise[[0, 0, 1, 1, 1, 2]]]
    (artifact,) = encoding.encode_outputs({"videos": [made]}, output_format, 10)
    found = read(artifact.data)
    assert [seconds for seconds, _ in found] == pytest.approx([0.1] * 6)
    shown = [np.asarray(frame).astype(int) for _, frame in found]
    assert all(
        np.abs(one - np.asarray(expected(frame, output_format))).max() < 128
        for one, frame in zip(shown, made, strict=True)
    )
    kept = [one.tobytes() for one in shown]
    assert [a == b for a, b in itertools.pairwise(kept)] == [True, False, True, True, False]
    assert encoding.encode_outputs({"videos": [made]}, output_format, 10) == [artifact]
