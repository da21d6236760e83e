"""Jobs through four processes whose files other programs make and read: sound given, sound in videos, metadata."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import safetensors
import torch
from diffusers.modular_pipelines.minimax_h3.references import MiniMaxH3AudioReference, MiniMaxH3ImageReference

from tests import needs
from tests.e2e.conftest import succeeded
from tests.families import cases, monolith
from tests.families.cases import Case
from tests.families.requests import request_of
from tests.fleet.parked import ParkedFleet
from triptych.media.encoding import encode_outputs
from triptych.v1.job_pb2 import (
    OUTPUT_METADATA_PROMPT,
    OUTPUT_METADATA_SETTINGS,
    GenerationRequest,
    InputMap,
    InputValue,
    Job,
    Media,
)

FleetOf = Callable[[Case], ParkedFleet]
PACKAGES = {"ffmpeg": "ffmpeg", "ffprobe": "ffmpeg", "identify": "imagemagick", "convert": "imagemagick"}
TIMEOUT_S = 60
FPS = 8


def run(program: str, *arguments: object) -> bytes:
    """What another program prints."""
    if shutil.which(program) is None:
        needs.skip(f"{program} isn't installed: apt-get install {PACKAGES[program]}")
    command = [program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=True).stdout


def probed(path: Path) -> dict[str, Any]:
    """What ffprobe says of a file: `streams` and `format`."""
    shown: dict[str, Any] = json.loads(
        run("ffprobe", "-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json", path)
    )
    return shown


def made(fleet: ParkedFleet, request: GenerationRequest, folder: Path) -> tuple[Job, dict[str, Path]]:
    """A job that has succeeded, and its files by their artifacts' names."""
    with fleet.client() as client:
        job = succeeded(client, client.submit(request).job_id)
        paths = client.download_results(job, folder / f"out.{request.output_format}")
    return job, {artifact.name: path for artifact, path in zip(job.artifacts, paths, strict=True)}


def test_sound_that_ffmpeg_wrote_reaches_the_pipeline(fleet_of: FleetOf, tmp_path: Path) -> None:
    """Beside a picture, as MiniMax-H3 wants it. Samples of 16 bits are exact, so all bits must be diffusers'."""
    job = cases.WORKFLOWS["minimax-h3"]["ref2va"]
    pictured = Case("minimax-h3", "ref2va", job)
    fleet = fleet_of(pictured)
    rate_hz = json.loads((Path(fleet.model) / "audio_vae" / "config.json").read_text())["sampling_rate"]
    voice = tmp_path / "voice.wav"
    tones = f"aevalsrc=0.4*sin(440*2*PI*t)|0.3*sin(660*2*PI*t):d=0.5:s={rate_hz}"
    run("ffmpeg", "-v", "error", "-f", "lavfi", "-i", tones, "-c:a", "pcm_s16le", voice)
    samples = np.frombuffer(run("ffmpeg", "-v", "error", "-i", voice, "-f", "s16le", "-"), "<i2").reshape(-1, 2)
    waveform = torch.from_numpy(samples.T.astype(np.float32) / 32768)

    request = request_of(pictured, output_format="npy")
    heard = InputMap(fields={"audio": InputValue(media=Media(data=voice.read_bytes()))})
    request.inputs["references"].list_value.items.append(InputValue(map_value=heard))
    _, files = made(fleet, request, tmp_path)
    with fleet.client() as client:
        names = list(client.describe_model().outputs)

    references = [MiniMaxH3ImageReference(image=cases.picture())]
    sounding = [*references, MiniMaxH3AudioReference(audio=waveform, sample_rate=rate_hz)]
    expected, silent = (
        encode_outputs(
            monolith.run(fleet.model, Case("minimax-h3", "", {**job, "references": given}), names), "npy", 24
        )
        for given in (sounding, references)
    )
    assert {file.name: file.data for file in expected} == {name: path.read_bytes() for name, path in files.items()}
    assert [file.data for file in silent] != [file.data for file in expected], "sound without effect proves nothing"


@pytest.fixture(scope="module")
def shown_and_heard(fleet_of: FleetOf, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, dict[str, Path]]:
    """A job of LTX-2 in every format that holds its video or its sound."""
    case = Case("ltx2", "text2video", cases.WORKFLOWS["ltx2"]["text2video"])
    request = request_of(case, output_format="mp4", frames_per_second=FPS)
    also = ("webm", "gif", "png", "zip", "wav", "flac", "mp3", "npy", "safetensors")
    request.output.also_formats.extend(also)
    request.output.metadata = OUTPUT_METADATA_SETTINGS
    return made(fleet_of(case), request, tmp_path_factory.mktemp("shown"))


@pytest.mark.parametrize(("name", "codecs"), [("0.mp4", ["h264", "aac"]), ("0.webm", ["vp9", "opus"])])
def test_video_and_sound_come_in_one_file(
    name: str, codecs: Sequence[str], shown_and_heard: tuple[Job, dict[str, Path]]
) -> None:
    _, files = shown_and_heard
    frames_THWC, samples_CN = np.load(files["0.npy"]), np.load(files["audio.npy"])
    shown, heard = probed(files[name])["streams"]
    assert [shown["codec_name"], heard["codec_name"]] == codecs
    assert (int(shown["nb_read_frames"]), shown["r_frame_rate"]) == (len(frames_THWC), f"{FPS}/1")
    assert (shown["height"], shown["width"]) == frames_THWC.shape[1:3]
    (plain,) = probed(files["0.wav"])["streams"]
    assert heard["channels"] == plain["channels"]
    seconds = samples_CN.shape[-1] / int(plain["sample_rate"])
    raw = run(
        "ffmpeg", "-v", "error", "-i", files[name], "-map", "0:a", "-ar", plain["sample_rate"], "-f", "s16le", "-"
    )
    assert len(raw) / 2 / heard["channels"] / int(plain["sample_rate"]) == pytest.approx(seconds, abs=0.1)
    assert np.frombuffer(raw, "<i2").std() > 0, "silence proves nothing"


def facts(job: Job) -> dict[str, Any]:
    """What a file must say of the job."""
    return {"seed": cases.SEED, "prompt_sha256": hashlib.sha256(cases.PROMPT.encode()).hexdigest(), "model": job.model}


@pytest.mark.parametrize("name", ["0.mp4", "0.webm", "0.wav", "0.flac", "0.mp3"])
def test_ffprobe_finds_the_metadata(name: str, shown_and_heard: tuple[Job, dict[str, Path]]) -> None:
    job, files = shown_and_heard
    tags = {key.lower(): text for key, text in probed(files[name])["format"]["tags"].items()}
    assert facts(job).items() <= json.loads(tags["comment"]).items()


def test_other_readers_find_the_metadata(shown_and_heard: tuple[Job, dict[str, Path]]) -> None:
    """ImageMagick in a GIF, Python in an archive, safetensors' own reader; in a PNG, the chunk's bytes."""
    job, files = shown_and_heard
    with zipfile.ZipFile(files["0.zip"]) as archive:
        zipped = archive.read("metadata.json")
    with safetensors.safe_open(files["0.safetensors"], "np") as exact:
        kept = exact.metadata()["triptych"]
    commented = run("identify", "-format", "%c", f"{files['0.gif']}[0]")
    for told in (zipped, kept, commented, itxt(files["0.png"].read_bytes())):
        assert facts(job).items() <= json.loads(told).items()


def itxt(png: bytes) -> bytes:
    """Text of the uncompressed `iTXt` chunk `Comment` (PNG specification, 11.3.3.4)."""
    head = b"iTXtComment" + bytes(5)
    start = png.index(head)
    (size,) = struct.unpack(">I", png[start - 4 : start])
    return png[start + len(head) : start + 4 + size]


def test_metadata_of_pictures_is_xmp(fleet_of: FleetOf, tmp_path: Path) -> None:
    """A packet that a scanner finds in each file's bytes; in a JPEG, ImageMagick finds it, too."""
    case = Case("stable-diffusion-3", "text2image", cases.WORKFLOWS["stable-diffusion-3"]["text2image"])
    request = request_of(case, output_format="jpeg")
    request.output.also_formats.extend(["webp", "avif"])
    request.output.metadata = OUTPUT_METADATA_PROMPT
    job, files = made(fleet_of(case), request, tmp_path)
    assert list(files) == ["0.jpeg", "0.webp", "0.avif"]
    packets = {name: path.read_bytes() for name, path in files.items()}
    packets["by ImageMagick"] = run("convert", files["0.jpeg"], "xmp:-")
    for name, data in packets.items():
        told = described(data)
        assert facts(job).items() <= told.items(), name
        assert (told["prompt"], told["negative_prompt"]) == (cases.PROMPT, case.arguments["negative_prompt"])


def described(data: bytes) -> dict[str, Any]:
    """What the XMP packet among these bytes has as `dc:description`."""
    packet = re.search(rb"<x:xmpmeta.*?</x:xmpmeta>", data, re.S)
    assert packet, "no packet"
    text = ElementTree.fromstring(packet[0]).findtext(".//{http://purl.org/dc/elements/1.1/}description//{*}li")
    found: dict[str, Any] = json.loads(text or "")
    return found
