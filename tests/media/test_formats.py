"""Each output format holds what it should, read by another library than wrote it; what it can't hold is refused."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import subprocess
import wave
import zipfile
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from triptych.errors import InvalidRequest
from triptych.media import encoding
from triptych.media.encoding import EncodedArtifact
from triptych.media.formats import FORMATS, formats_for, kinds_of
from triptych.model import outputs as model_outputs
from triptych.v1 import job_pb2, model_pb2
from triptych.v1.job_pb2 import GenerationRequest, OutputOptions

FRAMES, HEIGHT, WIDTH = 9, 48, 64
RATE_HZ = 16_000
METADATA = json.dumps({"seed": 7, "prompt_sha256": "ab" * 32, "prompt": 'a "quoted" <fox> & é'}, ensure_ascii=False)


def picture(channels: int = 3) -> np.ndarray[Any, Any]:
    """A smooth picture, which lossy formats keep closely."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [x * 4, y * 5, (x + y) * 2, np.where(x > 20, 255, 90)]
    return np.stack(planes[:channels], -1).astype(np.uint8)


def video() -> np.ndarray[Any, Any]:
    return np.stack([np.roll(picture(), 3 * frame, axis=1) for frame in range(FRAMES)])


def tone(channels: int = 2, rate_hz: int = RATE_HZ) -> torch.Tensor:
    """A second of 440 Hz, and 880 in the second channel."""
    t = np.arange(rate_hz) / rate_hz
    return torch.from_numpy(np.stack([0.5 * np.sin(2 * np.pi * 440 * (c + 1) * t) for c in range(channels)])[None])


SHOWN = {"videos": video()[None]}
HEARD = {"audio": tone()}
BOTH = {**SHOWN, **HEARD}


def encode(outputs: dict[str, object], name: str, rate_hz: int = RATE_HZ, **options: Any) -> list[EncodedArtifact]:
    metadata = METADATA if options.get("metadata") else ""
    return encoding.encode_outputs(
        outputs, name, 16, OutputOptions(**options), sampling_rate_hz=rate_hz, metadata_json=metadata
    )


def difference(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


@pytest.mark.parametrize("name", ["jpeg", "webp", "avif", "png"])
def test_a_picture_is_read_by_ffmpegs_library(name: str) -> None:
    (file,) = encode({"images": picture()[None]}, name)
    assert (file.name, file.media_type) == (f"0.{name}", f"image/{name}")
    with av.open(io.BytesIO(file.data)) as container:
        back = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert back.shape == (HEIGHT, WIDTH, 3)
    assert difference(back, picture()) < (0.01 if name == "png" else 3)


@pytest.mark.parametrize("name", ["jpeg", "webp", "avif"])
def test_quality_goes_from_small_to_close(name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    files = {q: encode({"images": noise}, name, quality=q)[0].data for q in (1, 0, 100)}
    assert len(files[1]) < len(files[0]) < len(files[100])
    back = {q: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for q, data in files.items()}
    assert difference(back[100], noise[0]) < difference(back[1], noise[0])


@pytest.mark.parametrize("name", ["webp", "avif"])
def test_transparency_is_kept(name: str) -> None:
    (file,) = encode({"images": picture(4)[None]}, name, quality=100)
    back = Image.open(io.BytesIO(file.data))
    assert back.mode == "RGBA"
    assert difference(np.asarray(back)[..., 3], picture(4)[..., 3]) < 2


def test_a_jpeg_has_white_where_the_picture_is_clear() -> None:
    (file,) = encode({"images": np.zeros((1, 16, 16, 4), np.uint8)}, "jpeg")
    assert np.asarray(Image.open(io.BytesIO(file.data))).min() == 255


@pytest.mark.parametrize(
    ("name", "codec", "decoder"),
    [
        ("mp4", "", "h264"),
        ("mp4", "h264", "h264"),
        ("mp4", "hevc", "hevc"),
        ("mp4", "av1", "av1"),
        ("webm", "", "vp9"),
        ("webm", "vp9", "vp9"),
        ("webm", "av1", "av1"),
    ],
)
def test_a_video_in_each_codec_twice_to_the_bit(name: str, codec: str, decoder: str) -> None:
    first, second = (encode(BOTH, name, codec=codec) for _ in range(2))
    assert first == second
    (file,) = first
    with av.open(io.BytesIO(file.data)) as container:
        shown = container.streams.video[0]
        assert (shown.codec_context.codec.canonical_name, shown.average_rate) == (decoder, 16)
        heard = container.streams.audio[0].codec_context
        assert heard.codec.canonical_name == {"mp4": "aac", "webm": "opus"}[name]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(shown)]
    assert len(frames) == FRAMES
    assert difference(np.stack(frames), video()) < 8
    if probe := shutil.which("ffprobe"):
        command = [probe, "-v", "error", "-show_entries", "stream=codec_name", "-of", "csv=p=0", "-"]
        told = subprocess.run(command, input=file.data, capture_output=True, timeout=60, check=True)
        assert told.stdout.decode().split()[0] == decoder
        assert not told.stderr


def test_quality_of_a_video() -> None:
    noise = {"videos": np.random.default_rng(0).integers(0, 256, (1, 5, 64, 64, 3), np.uint8)}
    for name in ("mp4", "webm"):
        sizes = [len(encode(noise, name, quality=quality)[0].data) for quality in (1, 50, 100)]
        assert sizes == sorted(sizes)


def test_a_codec_that_cannot_take_the_size_says_so() -> None:
    tiny = {"videos": np.zeros((1, 2, 2, 2, 3), np.uint8)}
    with pytest.raises(InvalidRequest, match=r"output.codec is 'libx265 for pictures of 2 x 2'; accepted: a codec"):
        encode(tiny, "mp4", codec="hevc")
    assert encode(tiny, "mp4")


def test_sound_of_the_track_is_the_pipelines() -> None:
    """Of the right pitch and length, at a rate that the codec has."""
    for name, rate_hz, stored_hz in (("mp4", 24_000, 24_000), ("mp4", 50_000, 64_000), ("webm", 44_100, 48_000)):
        (file,) = encode({**SHOWN, "audio": tone(1, rate_hz)}, name, rate_hz)
        with av.open(io.BytesIO(file.data)) as container:
            frames = list(container.decode(audio=0))
        assert frames[0].sample_rate == stored_hz
        samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
        assert len(samples) == pytest.approx(stored_hz, rel=0.1)
        assert pitch(samples, stored_hz) == pytest.approx(440, abs=3)


def pitch(samples: np.ndarray[Any, Any], rate_hz: int) -> float:
    middle = samples[len(samples) // 4 : 3 * len(samples) // 4].astype(float)
    spectrum = np.abs(np.fft.rfft(middle))
    return float(np.argmax(spectrum) * rate_hz / len(middle))


def test_wav_and_flac_hold_the_samples_exactly() -> None:
    """Decoded samples are the pipeline's in 16 bits."""
    expected = (tone()[0].numpy().clip(-1, 1) * 32767).round().astype(np.int16)
    (file,) = encode(HEARD, "wav")
    with wave.open(io.BytesIO(file.data)) as reader:
        assert (reader.getframerate(), reader.getsampwidth(), reader.getnchannels()) == (RATE_HZ, 2, 2)
        np.testing.assert_array_equal(np.frombuffer(reader.readframes(10**6), "<i2").reshape(-1, 2).T, expected)
    (file,) = encode(HEARD, "flac")
    with av.open(io.BytesIO(file.data)) as container:
        back = np.concatenate([frame.to_ndarray().reshape(-1, 2).T for frame in container.decode(audio=0)], axis=1)
    np.testing.assert_array_equal(back, expected)
    if ffmpeg := shutil.which("ffmpeg"):
        command = [ffmpeg, "-v", "error", "-i", "-", "-f", "s16le", "-"]
        told = subprocess.run(command, input=file.data, capture_output=True, timeout=60, check=True)
        np.testing.assert_array_equal(np.frombuffer(told.stdout, "<i2").reshape(-1, 2).T, expected)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100, 96_000])
def test_mp3_keeps_the_pitch(rate_hz: int) -> None:
    (file,) = encode({"audios": tone(2, rate_hz)}, "mp3", rate_hz)
    assert (file.name, file.media_type) == ("0.mp3", "audio/mpeg")
    with av.open(io.BytesIO(file.data)) as container:
        frames = list(container.decode(audio=0))
    samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    assert pitch(samples, frames[0].sample_rate) == pytest.approx(440, abs=3)
    assert len(encode({"audios": tone()}, "mp3", quality=1)[0].data) < len(encode({"audios": tone()}, "mp3")[0].data)


def test_more_channels_than_a_format_holds() -> None:
    outputs = {"audio": torch.zeros(1, 6, 4000)}
    with pytest.raises(InvalidRequest, match="mp3 with 6 channels'; accepted: wav, flac or npy"):
        encode(outputs, "mp3")
    with av.open(io.BytesIO(encode(outputs, "wav")[0].data)) as container:
        assert container.streams.audio[0].codec_context.channels == 6
    with pytest.raises(InvalidRequest, match="wav with 9 channels'; accepted: npy"):
        encode({"audio": torch.zeros(1, 9, 4000)}, "wav")


def test_where_sound_goes() -> None:
    """Into the video; beside pictures that have no track; by itself where it is asked for; exact as an array."""

    def names(outputs: dict[str, object], name: str, **options: Any) -> list[str]:
        return [file.name for file in encode(outputs, name, **options)]

    assert names(BOTH, "") == names(BOTH, "mp4") == ["0.mp4"]
    assert names(BOTH, "mp4", audio_format="flac") == ["0.mp4", "0.flac"]
    assert names(BOTH, "gif") == ["0.gif", "0.wav"]
    assert names(BOTH, "gif", audio_format="mp3") == ["0.gif", "0.mp3"]
    assert names(BOTH, "mp3") == ["0.mp3"]
    assert names(BOTH, "npy") == ["0.npy", "audio.npy"]
    assert names(BOTH, "mp4", audio_format="npy") == ["0.mp4", "audio.npy"]
    assert names(BOTH, "safetensors") == ["0.safetensors"]
    assert names(HEARD, "") == ["0.wav"]
    assert names(BOTH, "mp4", rate_hz=0) == ["0.mp4", "audio.npy"]  # without a rate it is only numbers
    two = {"videos": np.stack([video(), video()]), "audio": tone().repeat(2, 1, 1)}
    assert names(two, "webm") == ["0.webm", "1.webm"]
    of_one_video = {**SHOWN, "sound": tone()[0], "sampling_rate": RATE_HZ}  # [channels, samples]
    (file,) = encode(of_one_video, "mp4", rate_hz=0)
    with av.open(io.BytesIO(file.data)) as container:
        assert container.streams.audio[0].codec_context.channels == 2


def test_sound_as_an_array_is_the_pipelines_own() -> None:
    exact = {file.name: file for file in encode(BOTH, "npy")}["audio.npy"]
    np.testing.assert_array_equal(np.load(io.BytesIO(exact.data)), tone().numpy())


def read_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and numbers, by the format's own description (github.com/huggingface/safetensors)."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def test_safetensors_is_exact_and_keeps_types() -> None:
    half = torch.randn(1, 3, 8, 8, dtype=torch.bfloat16)
    outputs = {"images": half, "scores": np.arange(3.0), "note": "text"}
    first, second = (encode(outputs, "safetensors", metadata=1) for _ in range(2))
    assert first == second
    file, note = first
    assert note.name == "note.json"
    header, numbers = read_safetensors(file.data)
    assert json.loads(header["__metadata__"]["triptych"])["seed"] == 7
    assert (header["images"]["dtype"], header["images"]["shape"]) == ("BF16", [1, 3, 8, 8])
    start, end = header["images"]["data_offsets"]
    assert numbers[start:end] == half.view(torch.int16).numpy().tobytes()
    start, end = header["scores"]["data_offsets"]
    np.testing.assert_array_equal(np.frombuffer(numbers[start:end]), np.arange(3.0))
    pil = {"images": [Image.fromarray(picture()), Image.fromarray(picture())]}
    header, _numbers = read_safetensors(encode(pil, "safetensors")[0].data)
    assert {name: one["shape"] for name, one in header.items()} == {
        "images-0": [1, HEIGHT, WIDTH, 3],
        "images-1": [1, HEIGHT, WIDTH, 3],
    }
    with pytest.raises(InvalidRequest, match="npy, for numbers of these types"):
        encode({"x": np.array(["text"])}, "safetensors")


def test_an_archive_of_frames_holds_the_arrays() -> None:
    first, second = (encode(SHOWN, "zip", metadata=1) for _ in range(2))
    assert first == second
    with zipfile.ZipFile(io.BytesIO(first[0].data)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names == [*(f"{index:06d}.png" for index in range(FRAMES)), "metadata.json"]
        back = np.stack([np.asarray(Image.open(archive.open(name))) for name in names[:-1]])
        assert json.loads(archive.read("metadata.json")) == json.loads(METADATA)
    np.testing.assert_array_equal(back, video())


def test_further_formats_and_a_small_picture() -> None:
    wide = {"videos": np.zeros((1, 3, 300, 600, 3), np.uint8)}
    files = encode(wide, "mp4", also_formats=["zip", "npy"], thumbnail="webp")
    assert [file.name for file in files] == ["0.mp4", "0.zip", "0.npy", "0.thumbnail.webp"]
    assert Image.open(io.BytesIO(files[-1].data)).size == (256, 128)
    (_, small) = encode({"images": picture()[None]}, "png", thumbnail="jpeg")
    assert (small.name, Image.open(io.BytesIO(small.data)).size) == ("0.thumbnail.jpeg", (WIDTH, HEIGHT))


def told(name: str, data: bytes) -> str:
    """The text that a file's own field has."""
    if name in ("jpeg", "webp", "avif"):
        return str(xmp_text(Image.open(io.BytesIO(data)).info["xmp"]))
    if name in ("png", "gif"):
        info = Image.open(io.BytesIO(data)).info
        return str(info["Comment"]) if name == "png" else info["comment"].decode()
    with av.open(io.BytesIO(data)) as container:
        return {key.lower(): value for key, value in container.metadata.items()}["comment"]


def xmp_text(packet: bytes) -> str | None:
    from xml.etree import ElementTree

    tree = ElementTree.fromstring(packet)
    return tree.findtext(".//{http://purl.org/dc/elements/1.1/}description//{*}li")


@pytest.mark.parametrize("name", [*("png", "jpeg", "webp", "avif", "gif"), *("mp4", "webm", "wav", "flac", "mp3")])
def test_metadata_stands_in_the_formats_own_field(name: str) -> None:
    outputs = {"images": picture()[None]} if name in ("jpeg", "webp", "avif") else BOTH
    with_it, again, without = (
        next(file for file in encode(outputs, name, metadata=wanted) if file.name == f"0.{name}")
        for wanted in (1, 1, 0)
    )
    assert with_it == again
    assert told(name, with_it.data) == METADATA
    assert b"prompt_sha256" not in without.data


def test_another_tool_finds_the_metadata() -> None:
    probe = shutil.which("ffprobe")
    if probe is None:
        pytest.skip("ffprobe isn't installed; the test above reads the fields with libraries")
    for name in ("mp4", "webm", "flac", "mp3", "wav"):
        (file,) = encode(BOTH, name, metadata=1)
        command = [probe, "-v", "error", "-show_entries", "format_tags", "-of", "json", "-"]
        found = json.loads(subprocess.run(command, input=file.data, capture_output=True, timeout=60, check=True).stdout)
        assert METADATA in found["format"]["tags"].values()


def test_metadata_without_a_field_is_a_file_and_too_much_is_refused() -> None:
    assert [file.name for file in encode(SHOWN, "npy", metadata=1)] == ["0.npy", "metadata.json"]
    with pytest.raises(InvalidRequest, match="at most 65502 bytes in a JPEG: leave the prompt out"):
        encoding.encode_outputs({"images": picture()[None]}, "jpeg", 16, metadata_json="x" * 70_000)


@pytest.mark.parametrize(
    ("outputs", "name"),
    [
        (SHOWN, "jpeg"),
        (SHOWN, "avif"),
        (SHOWN, "wav"),
        ({"images": picture()[None]}, "mp4"),
        ({"images": picture()[None]}, "zip"),
        (HEARD, "png"),
        ({"latents": torch.zeros(1, 16, 4, 4)}, "flac"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(outputs: dict[str, object], name: str) -> None:
    accepted = ", ".join(formats_for(kinds_of(outputs)))
    with pytest.raises(InvalidRequest, match=f"output_format is '{name}'; accepted: {accepted}, for"):
        encode(outputs, name)


def described(*names: str) -> model_pb2.ModelDescription:
    return model_pb2.ModelDescription(model="m", revision="r", config_digest="d", outputs=names)


@pytest.mark.parametrize(
    ("names", "fields", "sentence"),
    [
        (("videos",), {"output_format": "jpeg"}, "mp4, webm, gif, png, zip, npy, safetensors; this pipeline makes vid"),
        (("images",), {"output_format": "mp4"}, "png, jpeg, webp, avif, npy, safetensors; this pipeline makes images"),
        (("audios",), {"output_format": "png"}, "wav, flac, mp3, npy, safetensors; this pipeline makes sound"),
        (("videos",), {"output_format": "avi"}, "output_format is 'avi'; accepted: mp4"),
        (("videos",), {"output": {"codec": "vp9"}}, "output.codec is 'vp9'; accepted: h264, hevc, av1, in mp4"),
        (("images",), {"output": {"codec": "h264"}}, "output.codec is 'h264'; accepted: nothing, in png"),
        (
            ("images",),
            {"output": {"quality": 101}, "output_format": "jpeg"},
            "quality is 101; accepted: 1 to 100",
        ),
        (("images",), {"output": {"quality": 50}, "output_format": "png"}, "0; only jpeg, webp, avif have a quality"),
        (("videos",), {"output": {"audio_format": "wav"}}, "output.audio_format is 'wav'; accepted: nothing; this"),
        (("videos", "audio"), {"output": {"audio_format": "ogg"}}, "accepted: wav, flac, mp3, npy, safetensors; this"),
        (("audio",), {"output": {"thumbnail": "webp"}}, "output.thumbnail is 'webp'; accepted: nothing; this"),
        (("videos",), {"output": {"thumbnail": "gif"}}, "output.thumbnail is 'gif'; accepted: jpeg, webp; this"),
        (("videos",), {"output": {"also_formats": ["jpeg"]}}, "output.also_formats is 'jpeg'; accepted: mp4"),
        (("videos",), {"output": {"also_formats": [""]}}, "output.also_formats is ''; accepted: mp4"),
        (("videos",), {"output": {"metadata": 9}}, "output.metadata is 9; accepted: OUTPUT_METADATA_SETTINGS"),
    ],
)
def test_a_request_is_refused_before_it_runs(names: tuple[str, ...], fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        model_outputs.check(GenerationRequest(**fields), described(*names))
    assert sentence in str(refused.value)


def test_every_format_is_accepted_of_some_model_and_encodes_what_it_holds() -> None:
    for name in FORMATS:
        outputs = {"images": picture()[None]} if name in ("jpeg", "webp", "avif") else BOTH
        model_outputs.check(GenerationRequest(output_format=name), described(*outputs))
        assert any(file.name.endswith(f".{name}") for file in encode(outputs, name))


def test_metadata_has_no_text_unless_it_is_asked_for() -> None:
    request = GenerationRequest(prompt="a secret", negative_prompt="none", seed=5, num_inference_steps=3)
    request.parameters.update({"prompt_2": "another secret", "strength": 0.5, "layers": 4, "flag": True})
    assert model_outputs.metadata_json(request, described("images")) == ""
    request.output.metadata = job_pb2.OUTPUT_METADATA_SETTINGS
    text = model_outputs.metadata_json(request, described("images"))
    assert "secret" not in text
    assert "none" not in text
    document = json.loads(text)
    assert document["settings"] == {"num_inference_steps": 3, "strength": 0.5, "layers": 4, "flag": True}
    assert (document["seed"], document["model"], document["revision"], document["model_digest"]) == (5, "m", "r", "d")
    assert document["prompt_sha256"] == hashlib.sha256(b"a secret").hexdigest()
    request.output.metadata = job_pb2.OUTPUT_METADATA_PROMPT
    assert json.loads(model_outputs.metadata_json(request, described("images")))["prompt"] == "a secret"
