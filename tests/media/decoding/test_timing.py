"""Videos of uneven times: what a constant rate shows of them, as FFmpeg's own filter `fps` has it."""

from __future__ import annotations

import itertools
import struct
from fractions import Fraction

import av
import av.filter
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.media.decoding.files import gif
from tests.media.decoding.test_videos import ffmpegs, frames_of, read, sums_of
from triptych.errors import InvalidRequest
from triptych.media.decoding import bounds
from triptych.media.decoding.headers import VIDEO, File
from triptych.media.decoding.pool import Decoders
from triptych.media.decoding.timing import Shown, at_rate, is_uneven


@pytest.mark.parametrize("rate", [10, 30])
@pytest.mark.parametrize("through", ["in process", "in a child"])
def test_an_uneven_film_at_a_rate_has_the_frames_of_ffmpegs_filter(rate: int, through: str) -> None:
    """`uneven.mp4` has 28 of the 48 frames of two seconds: a few are shown for a quarter of a second."""
    data = read("uneven.mp4")
    if through == "in process":
        frames = frames_of(data, frames_per_second=rate)
    else:
        with Decoders() as decoders:
            (frames,) = decoders.decode([File("video", VIDEO, data, frames_per_second=rate)])  # type: ignore[assignment]
    assert sums_of(frames) == ffmpegs(f"uneven-at-{rate}")
    assert frames.frames_per_second == rate


def test_another_container_of_the_same_film_gives_the_same_frames() -> None:
    """WebM's times are whole milliseconds; the instants of 10 a second lie far from where that matters."""
    assert len(frames_of(read("uneven.webm"), frames_per_second=10)) == len(ffmpegs("uneven-at-10"))


def test_without_a_rate_each_frame_is_one_frame() -> None:
    frames = frames_of(read("uneven.mp4"))
    assert len(frames) == 28


@pytest.mark.parametrize("name", ["vp9.webm", "animated.png", "untagged.mp4", "animated.webp"])
def test_an_even_film_keeps_its_frames_at_any_rate(name: str) -> None:
    """They are what its maker meant; only their number counts."""
    assert sums_of(frames_of(read(name), frames_per_second=24)) == sums_of(frames_of(read(name)))


def test_a_frame_that_lasts_for_hours_is_bounded() -> None:
    data = gif(8, 8, 1)
    start = data.index(b",")
    frame = data[start:-1]
    slow, quick = (struct.pack("<4sHH", b"\x21\xf9\x04\x00", hundredths, 0) for hundredths in (65_535, 10))
    film = data[:start] + slow + frame + (quick + frame) * 3 + b";"
    assert len(frames_of(film)) == 4
    said = rf"^media.video is 'more than {bounds.VIDEO_FRAMES_MAX} frames at 24 a second'; accepted: at most"
    with pytest.raises(InvalidRequest, match=said):
        frames_of(film, frames_per_second=24)
    with Decoders() as decoders, pytest.raises(InvalidRequest, match=said):
        decoders.check([File("video", VIDEO, film, frames_per_second=24)])


def shown(starts_ms: list[int], end_ms: int) -> list[Shown]:
    ends = [*starts_ms[1:], end_ms]
    return [Shown(Fraction(a, 1000), Fraction(b, 1000)) for a, b in zip(starts_ms, ends, strict=True)]


def filtered(times: list[Shown], rate: Fraction) -> list[int]:
    """What FFmpeg's filter makes of frames with these times: each is a grey of its own number."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=16, height=16, format="gray", time_base=Fraction(1, 1000))
    nodes = [source, graph.add("fps", f"fps={rate}:round=up"), graph.add("buffersink")]
    for one, other in itertools.pairwise(nodes):
        one.link_to(other)
    graph.configure()
    for number, (start_s, end_s) in enumerate(times):
        frame = av.VideoFrame.from_ndarray(np.full((16, 16), number, np.uint8), "gray")
        frame.pts, frame.time_base = int(start_s * 1000), Fraction(1, 1000)
        frame.duration = int((end_s - start_s) * 1000)
        source.push(frame)
    source.push(None)
    numbers = []
    while True:
        try:
            numbers.append(int(nodes[-1].pull().to_ndarray()[0, 0]))
        except (av.EOFError, av.BlockingIOError):
            return numbers


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=12),
    st.sampled_from([Fraction(10), Fraction(24), Fraction(30000, 1001)]),
)
@settings(max_examples=60, deadline=None)
def test_any_times_give_the_frames_of_ffmpegs_filter(lasting_ms: list[int], rate: Fraction) -> None:
    starts = [sum(lasting_ms[:number]) for number in range(len(lasting_ms))]
    times = shown(starts, sum(lasting_ms))
    assert at_rate(times, rate, 10_000) == filtered(times, rate)


def test_uneven_is_what_no_rate_has() -> None:
    assert not is_uneven(shown([0, 41, 83, 125, 167], 208))
    assert not is_uneven(shown([0, 1000], 1010))
    assert is_uneven(shown([0, 41, 300, 341], 382))
    assert not is_uneven(shown([5, 35, 76, 104], 140))


def test_a_picture_that_is_shown_twice_is_one_picture() -> None:
    frames = frames_of(read("uneven.mp4"), frames_per_second=30)
    assert len({id(frame) for frame in frames}) < len(frames)
    assert all(isinstance(frame, Image.Image) for frame in frames)
