"""Sound in every format, made by FFmpeg (`media/README.md`) of one WAV of a rising tone; broken files of each."""

from __future__ import annotations

import struct
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.media.decoding.files import bent
from triptych.errors import InvalidRequest
from triptych.media.decoding import bounds, decode
from triptych.media.decoding.headers import AUDIO, VIDEO, File
from triptych.media.decoding.pool import Decoders
from triptych.media.decoding.values import Sound

MEDIA = Path(__file__).parent / "media"
EXACT = ("sound.wav", "sound-24.wav", "sound.flac", "with-sound.mp4")
"""The last is Apple's lossless codec beside a video."""
LOSSY = {"sound.mp3": 24, "sound.ogg": 28, "sound.m4a": 13, "sound.opus": 34, "with-sound.webm": 34}
"""How far the difference lies below the sound, in decibels: what FFmpeg's encoders lose of this short one."""


def read(name: str) -> bytes:
    return (MEDIA / name).read_bytes()


def sound_of(data: bytes, sample_rate: int = 0) -> Sound:
    (found,) = decode.decode_all([File("sound", AUDIO, data, sample_rate=sample_rate)])
    assert isinstance(found, Sound)
    return found


def pcm(name: str) -> np.ndarray:
    """A WAV of 16 bits as the standard library reads it, over 32768."""
    with wave.open(str(MEDIA / name)) as opened:
        samples = np.frombuffer(opened.readframes(opened.getnframes()), "<i2")
        return samples.reshape(-1, opened.getnchannels()).T.astype(np.float32) / 32768


@pytest.mark.parametrize("name", EXACT)
def test_what_is_lossless_is_exact(name: str) -> None:
    found = sound_of(read(name))
    assert found.sample_rate == 16_000
    assert found.samples_CN.dtype == np.float32
    np.testing.assert_array_equal(found.samples_CN, pcm("sound.wav"))
    with Decoders() as decoders:
        (brought,) = decoders.decode([File("sound", AUDIO, read(name))])
    assert isinstance(brought, Sound)
    assert brought.sample_rate == 16_000
    np.testing.assert_array_equal(brought.samples_CN, found.samples_CN)


@pytest.mark.parametrize("name", LOSSY)
def test_what_is_lossy_begins_and_ends_where_the_sound_did(name: str) -> None:
    """Encoders add samples at both ends, which players leave out."""
    found = sound_of(read(name))
    wanted = pcm("sound.wav") if found.sample_rate == 16_000 else sound_of(read("sound.wav"), 48_000).samples_CN
    assert found.samples_CN.shape == wanted.shape
    difference = np.square(found.samples_CN - wanted, dtype=np.float64).sum()
    decibels = 10 * np.log10(np.square(wanted, dtype=np.float64).sum() / difference)
    assert decibels > LOSSY[name]


def test_bare_aac_keeps_the_delay_that_it_says_nothing_of() -> None:
    found = sound_of(read("sound.aac")).samples_CN
    np.testing.assert_array_equal(found[:, 1024:4224], sound_of(read("sound.m4a")).samples_CN)


def test_floats_beyond_full_scale_are_kept() -> None:
    np.testing.assert_array_equal(sound_of(read("sound-float.wav")).samples_CN, 3 * pcm("sound.wav"))


def test_floats_that_are_no_numbers_are_refused() -> None:
    data = bytearray(read("sound-float.wav"))
    data[-4:] = struct.pack("<f", float("nan"))
    with pytest.raises(InvalidRequest, match=r"^media.sound is .*finite"):
        sound_of(bytes(data))


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
def test_sound_is_brought_to_the_pipelines_rate(rate: int) -> None:
    """A tone of 500 Hz stays one: its phase advances by that much in a second of any rate."""
    found = sound_of(read("sound.wav"), rate)
    assert found.sample_rate == rate
    assert abs(found.samples_CN.shape[1] - 0.2 * rate) <= 1
    tone = 0.25 * np.sin(2 * np.pi * 500 * np.arange(found.samples_CN.shape[1]) / rate)
    middle = slice(rate // 50, -rate // 50)
    assert np.abs(found.samples_CN[1, middle] - tone[middle]).max() < 0.01


def test_surround_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"^media.sound is 'sound of 6 channels'; accepted: mono or stereo"):
        sound_of(read("surround.wav"))


@pytest.mark.parametrize("name", ["lossless.mkv", "untagged.mp4"])
def test_a_silent_film_has_no_sound(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^media.sound is 'a file without sound'"):
        sound_of(read(name))


@pytest.mark.parametrize("name", ["srgb.png", "animated.gif", "README.md"])
def test_other_files_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^media.sound is .*accepted: the bytes of whole sound: WAV"):
        sound_of(read(name))


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "cut in half": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[: len(data) * 7 // 8],
    "only its beginning": lambda data: data[:20],
    "of other bytes": lambda data: data[:12] + bytes(len(data) - 12),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("name", [*EXACT, *LOSSY, "sound.aac"])
def test_broken_sound_is_refused_by_name(name: str, how: str) -> None:
    broken = File("", AUDIO, BROKEN[how](read(name)), field="inputs.references[2].audio")
    with pytest.raises(InvalidRequest, match=r"^inputs.references\[2\].audio is "):
        decode.decode_all([broken])


def test_a_wav_without_a_length_lasts_until_its_end() -> None:
    """FFmpeg writes one where it can't go back to the beginning."""
    data = bytearray(read("sound.wav"))
    data[4:8] = data[data.index(b"data") + 4 : data.index(b"data") + 8] = b"\xff" * 4
    np.testing.assert_array_equal(sound_of(bytes(data)).samples_CN, pcm("sound.wav"))


def test_tags_before_the_sound_are_passed_over() -> None:
    tags = b"ID3\4\0\0" + bytes([0, 0, 2, 0]) + bytes(256)
    for name in ("sound.mp3", "sound.aac"):
        plain = read(name)
        np.testing.assert_array_equal(
            sound_of(tags + plain[_without_tags(plain) :]).samples_CN, sound_of(plain).samples_CN
        )


def _without_tags(data: bytes) -> int:
    return 10 + int.from_bytes(data[6:10]) if data.startswith(b"ID3") else 0


@pytest.mark.parametrize("name", ["m4a", "mp3"])
def test_a_cover_is_no_sound_and_no_film(name: str) -> None:
    covered = read(f"covered.{name}")
    np.testing.assert_array_equal(sound_of(covered).samples_CN, sound_of(read(f"sound.{name}")).samples_CN)
    with pytest.raises(InvalidRequest, match=r"^media.video is .*the bytes of a whole video"):
        decode.decode_all([File("video", VIDEO, covered)])


def test_the_length_that_a_header_says_is_bounded() -> None:
    data = bytearray(read("sound.flac"))
    data[21:26] = bytes([data[21] | 0x0F, 0xFF, 0xFF, 0xFF, 0xFF])
    for lying in (bytes(data), bent(read("with-sound.mp4"), b"stsz", 8, struct.pack(">I", 60_000_000))):
        with pytest.raises(InvalidRequest, match=r"^media.sound is .*samples.*accepted: at most"):
            sound_of(lying)


def test_sound_that_grows_when_it_is_decoded_is_bounded() -> None:
    """A second of FLAC's silence takes a few bytes, and this header doesn't say how many there are."""
    data = read("sound.flac")
    start = data.index(b"\xff\xf8", 42)
    silent = bytearray(data[:start])
    silent[21:26] = bytes([silent[21] & 0xF0, 0, 0, 0, 0])
    frame = data[start : data.index(b"\xff\xf8", start + 2)]
    files = [File("sound", AUDIO, bytes(silent) + frame * 40, sample_rate=768_000)] * 20
    assert bounds.SOUND_SAMPLES_MAX < 20 * 40 * 1152 * 2 * 49
    with Decoders() as decoders, pytest.raises(InvalidRequest, match=r"^media.sound is .*samples of sound"):
        decoders.check(files)
