"""Files of requests, and files of pipelines' outputs."""

from __future__ import annotations

import io
import json
import wave

import av
import numpy as np
import pytest
import torch
from PIL import Image

from triptych.errors import InvalidRequest
from triptych.media import encoding
from triptych.media.decoding import decode
from triptych.media.decoding.headers import VIDEO, File
from triptych.media.formats import FORMATS, MOVING, SOUND

FRAMES, HEIGHT, WIDTH = 5, 34, 50


def clip_FHWC(blue: float = 0.8) -> np.ndarray:
    """A red square that moves right on blue, in 0…1."""
    video = np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.float32)
    video[..., 2] = blue
    for frame in range(FRAMES):
        video[frame, 10:24, 5 * frame : 5 * frame + 14] = (0.9, 0.1, 0.1)
    return video


def as_bytes(array: np.ndarray) -> np.ndarray:
    return (array * 255).round().astype(np.uint8)


def as_pil(video: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(frame) for frame in as_bytes(video)]


def frames_of(data: bytes) -> list[Image.Image]:
    """A video's frames, as a request that brought it would have them."""
    (frames,) = decode.decode_all([File("x", VIDEO, data)])
    return frames


def npy(artifact: encoding.EncodedArtifact) -> np.ndarray:
    assert artifact.media_type == "application/x-npy"
    return np.load(io.BytesIO(artifact.data), allow_pickle=False)


A, B = clip_FHWC(0.8), clip_FHWC(0.3)
BATCH = np.stack([A, B])
VIDEOS = {
    "pil": [as_pil(A), as_pil(B)],
    "numpy": BATCH,
    "bytes": as_bytes(BATCH),
    "torch_BFCHW": torch.from_numpy(BATCH).permute(0, 1, 4, 2, 3),
    "torch_BCFHW": torch.from_numpy(BATCH).permute(0, 4, 1, 2, 3),
    "list_of_arrays": [A, B],
    "list_of_tensors": [torch.from_numpy(video).permute(0, 3, 1, 2) for video in (A, B)],
}


@pytest.mark.parametrize("layout", VIDEOS)
@pytest.mark.parametrize("name", ["videos", "frames"])
def test_batch_of_videos_in_every_layout(layout, name):
    artifacts = encoding.encode_outputs({name: VIDEOS[layout]}, "npy", 16)
    assert [artifact.name for artifact in artifacts] == ["0.npy", "1.npy"]
    for artifact, expected in zip(artifacts, (A, B), strict=True):
        array = npy(artifact)
        assert array.shape == expected.shape
        np.testing.assert_array_equal(array if array.dtype == np.uint8 else as_bytes(array), as_bytes(expected))


IMAGES = {
    "pil": as_pil(A),
    "numpy": A,
    "torch": torch.from_numpy(A).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("layout", IMAGES)
def test_the_outputs_name_tells_a_video_from_a_batch_of_images(layout):
    images = encoding.encode_outputs({"images": IMAGES[layout]}, "", 16)
    assert [image.name for image in images] == [f"{index}.png" for index in range(FRAMES)]
    for image, frame in zip(images, A, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image.data))), as_bytes(frame))
    videos = encoding.encode_outputs({"videos": IMAGES[layout]}, "", 16)
    assert [(video.name, video.media_type) for video in videos] == [("0.mp4", "video/mp4")]
    assert len(frames_of(videos[0].data)) == FRAMES


def test_layers_of_images_are_images():
    artifacts = encoding.encode_outputs({"images": [as_pil(A)[:2], as_pil(B)[:2]]}, "png", 16)
    assert [artifact.name for artifact in artifacts] == ["0-0.png", "0-1.png", "1-0.png", "1-1.png"]


def test_single_image_and_grey_and_alpha():
    for mode in ("L", "RGB", "RGBA", "CMYK"):
        image = Image.effect_noise((9, 7), 80).convert(mode)
        (artifact,) = encoding.encode_outputs({"image": image}, "", 16)
        back = Image.open(io.BytesIO(artifact.data))
        assert (back.mode, back.size) == ("RGB" if mode == "CMYK" else mode, (9, 7))


@pytest.mark.parametrize(("height", "width"), [(34, 50), (33, 51), (1, 1), (16, 17)])
def test_mp4_shows_the_frames(height, width):
    video = np.zeros((3, height, width, 3), np.float32)
    video[:, :, :, 0], video[1, :, :, 1] = 0.9, 0.6
    (artifact,) = encoding.encode_outputs({"videos": video[None]}, "mp4", 24)
    frames = np.stack([np.asarray(frame) for frame in frames_of(artifact.data)])
    assert frames.shape == (3, height + height % 2, width + width % 2, 3)
    assert np.abs(frames[:, :height, :width].astype(int) - as_bytes(video)).max() <= 6
    with av.open(io.BytesIO(artifact.data)) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.codec_context.pix_fmt, stream.codec_context.name) == (24, "yuv420p", "h264")


@pytest.mark.parametrize("output_format", ["gif", "png"])
def test_moving_pictures(output_format):
    (artifact,) = encoding.encode_outputs({"videos": A[None]}, output_format, 10)
    image = Image.open(io.BytesIO(artifact.data))
    assert (image.n_frames, image.info["duration"]) == (FRAMES, 100)
    for index in range(FRAMES):
        image.seek(index)
        np.testing.assert_allclose(np.asarray(image.convert("RGB")).astype(int), as_bytes(A[index]), atol=3)


@pytest.mark.parametrize("output_format", FORMATS)
def test_equal_input_gives_equal_bytes(output_format):
    noise = np.random.default_rng(0).random((1, 9, 64, 64, 3), np.float32)
    still = not {MOVING, SOUND} & FORMATS[output_format].holds
    outputs = (
        {"images": noise[0]} if still else {"videos": noise, "audio": noise.reshape(1, 1, -1), "sampling_rate": 8000}
    )
    first, second = (encoding.encode_outputs(outputs, output_format, 16) for _ in range(2))
    assert first == second


def test_npy_is_exact():
    latents = torch.randn(2, 16, 4, 4, dtype=torch.bfloat16)
    (artifact,) = encoding.encode_outputs({"images": latents}, "", 16)
    assert artifact.name == "images.npy"
    np.testing.assert_array_equal(npy(artifact), latents.float().numpy())
    noise = np.random.default_rng(0).random((1, 2, 3, 4, 3))
    np.testing.assert_array_equal(npy(encoding.encode_outputs({"videos": noise}, "npy", 16)[0]), noise[0])


def test_not_a_number_is_black_and_range_is_clipped():
    video = np.full((1, 2, 4, 4, 3), np.nan, np.float32)
    video[:, 1, :, :2], video[:, 1, :, 2:] = 7.0, -7.0
    (artifact,) = encoding.encode_outputs({"videos": video}, "png", 16)
    image = Image.open(io.BytesIO(artifact.data))
    assert not np.asarray(image.convert("RGB")).any()
    image.seek(1)
    assert set(np.asarray(image.convert("RGB")).reshape(-1)) == {0, 255}


@pytest.mark.parametrize(
    ("audio", "files", "channels"),
    [
        (torch.linspace(-2, 2, 800).reshape(1, 800), 1, 1),
        (np.linspace(-2, 2, 3200, dtype=np.float32).reshape(2, 2, 800), 2, 2),
        ([np.zeros(800), np.ones(800)], 2, 1),
        (np.zeros(800), 1, 1),
    ],
)
def test_audio(audio, files, channels):
    outputs = {"videos": A[None], "audio": audio, "sampling_rate": 16000}
    artifacts = encoding.encode_outputs(outputs, "gif", 16)
    assert [artifact.name for artifact in artifacts] == ["0.gif", *(f"{index}.wav" for index in range(files))]
    for artifact in artifacts[1:]:
        with wave.open(io.BytesIO(artifact.data)) as reader:
            assert (reader.getnchannels(), reader.getframerate(), reader.getnframes()) == (channels, 16000, 800)
    assert artifacts[1].media_type == "audio/wav"


def test_other_outputs():
    outputs = {"action": torch.ones(2, 3), "score": [1, {"a": np.float32(2)}], "nothing": None}
    action, score = encoding.encode_outputs(outputs, "", 16)
    assert npy(action).shape == (2, 3)
    assert (score.name, json.loads(score.data)) == ("score.json", [1, {"a": 2.0}])
    with pytest.raises(InvalidRequest, match="output odd"):
        encoding.encode_outputs({"odd": object()}, "", 16)


def test_formats_are_checked():
    with pytest.raises(InvalidRequest, match="mp4, webm, gif, png, zip, npy, safetensors"):
        encoding.encode_outputs({"videos": A[None]}, "avi", 16)
    with pytest.raises(InvalidRequest, match="output_format"):
        encoding.encode_outputs({"images": torch.zeros(1, 16, 4, 4)}, "png", 16)


@pytest.mark.parametrize("output_format", ["mp4", "gif"])
def test_transparency_is_laid_over_white_where_a_format_has_none(output_format: str):
    rgba = np.random.default_rng(3).integers(0, 256, (1, 2, 16, 16, 4), np.uint8)
    colours, alpha = rgba[..., :3].astype(int), rgba[..., 3:].astype(int)
    over_white = np.floor((colours * alpha + 255 * (255 - alpha)) / 255 + 0.5).astype(np.uint8)
    (artifact,) = encoding.encode_outputs({"videos": rgba}, output_format, 10)
    assert artifact == encoding.encode_outputs({"videos": over_white}, output_format, 10)[0]
    (kept,) = encoding.encode_outputs({"videos": rgba[:, :1]}, "png", 10)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(kept.data))), rgba[0, 0])


def test_pictures_of_several_kinds_keep_their_transparency():
    opaque, clear = Image.new("RGB", (4, 4), "red"), Image.new("RGBA", (4, 4), (0, 255, 0, 7))
    (artifact,) = encoding.encode_outputs({"videos": [opaque, clear]}, "npy", 10)
    assert npy(artifact)[:, 0, 0].tolist() == [[255, 0, 0, 255], [0, 255, 0, 7]]


def test_pictures_of_any_mode_keep_their_ramp_and_their_transparency():
    ramp = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    (deep,) = encoding.encode_outputs({"images": [Image.fromarray(ramp)]}, "png", 8)
    with Image.open(io.BytesIO(deep.data)) as opened:
        np.testing.assert_array_equal(np.asarray(opened), ramp >> 8)
    palette = Image.new("P", (4, 4))
    palette.info["transparency"] = 0
    for image in (palette, Image.new("LA", (4, 4), (100, 0))):
        for images in ([image], [Image.new("RGB", (4, 4)), image]):
            (file,) = encoding.encode_outputs({"videos": images}, "npy", 8)
            assert (np.load(io.BytesIO(file.data))[-1, ..., 3] == 0).all()
