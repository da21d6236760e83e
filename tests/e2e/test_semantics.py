"""The demos show what was asked: a fixed grid of prompts through the services, judged from the pixels of the files."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

import clips
from judge import judge
from measure import PICTURE_FIELDS, choose_prompts, draw_first_frame
from tests.fleet.processes import Fleet

SHAPES = Path(__file__).parents[2] / "examples" / "shapes"
MODEL, PICTURE_MODEL = SHAPES / "model", SHAPES / "picture_model"
IMAGE_TO_VIDEO_MODEL = SHAPES / "image_to_video_model"
PROMPT_COUNT = 32
PICTURE_COUNT = 24
MOVE_COUNT = 12
FIRST_FRAME_DIFFERENCE_MAX = 16  # of 255, the mean over the pixels; another colour of background alone makes over 60
ALL_RIGHT_MIN = 0.9
RIGHT_SHARE_MIN = {"colour": 0.95, "background": 0.95, "shape": 0.85, "size": 0.85, "direction": 0.85}


def frames_of(path: Path) -> np.ndarray[Any, Any]:
    """A video file's pixels [F, H, W, 3]."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_clips_match_their_prompts(tmp_path: Path) -> None:
    prompts = choose_prompts(PROMPT_COUNT, varied=True, seed=2026)
    right: Counter[str] = Counter()
    with Fleet(tmp_path / "fleet", str(MODEL)) as fleet, fleet.client() as client:
        jobs = [client.create_job(prompt, seed=seed).job_id for seed, (prompt, _) in enumerate(prompts)]
        for job_id, (_, wanted) in zip(jobs, prompts, strict=True):
            for _ in client.watch_job(job_id):
                pass
            seen = judge(frames_of(client.download_result(job_id, tmp_path / f"{job_id}.mp4")))
            right.update(name for name in RIGHT_SHARE_MIN if getattr(seen, name) == getattr(wanted, name))
    shares = {name: right[name] / PROMPT_COUNT for name in RIGHT_SHARE_MIN}
    assert all(shares[name] >= minimum for name, minimum in RIGHT_SHARE_MIN.items()), shares


def test_pictures_match_their_prompts(tmp_path: Path) -> None:
    prompts = choose_prompts(PICTURE_COUNT, varied=True, seed=2026, wordings=clips.PICTURE_WORDINGS)
    right_count = 0
    with Fleet(tmp_path / "fleet", str(PICTURE_MODEL)) as fleet, fleet.client() as client:
        jobs = [client.create_job(prompt, seed=seed).job_id for seed, (prompt, _) in enumerate(prompts)]
        for job_id, (_, wanted) in zip(jobs, prompts, strict=True):
            for _ in client.watch_job(job_id):
                pass
            with Image.open(client.download_result(job_id, tmp_path / f"{job_id}.png")) as picture:
                seen = judge(np.asarray(picture.convert("RGB"))[None])
            right_count += all(getattr(seen, name) == getattr(wanted, name) for name in PICTURE_FIELDS)
    assert right_count >= ALL_RIGHT_MIN * PICTURE_COUNT, f"{right_count} of {PICTURE_COUNT}"


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    """A PNG file's bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


def test_first_frames_move_as_asked(tmp_path: Path) -> None:
    prompts = choose_prompts(MOVE_COUNT, varied=True, seed=2027)
    given = [draw_first_frame(wanted, seed) for seed, (_, wanted) in enumerate(prompts)]
    right_count = 0
    with Fleet(tmp_path / "fleet", str(IMAGE_TO_VIDEO_MODEL)) as fleet, fleet.client() as client:
        jobs = [
            client.create_job(prompt, seed=seed, media={"image": png(given[seed])}).job_id
            for seed, (prompt, _) in enumerate(prompts)
        ]
        for job_id, first, (_, wanted) in zip(jobs, given, prompts, strict=True):
            for _ in client.watch_job(job_id):
                pass
            frames = frames_of(client.download_result(job_id, tmp_path / f"{job_id}.mp4"))
            assert np.abs(frames[0].astype(float) - first).mean() <= FIRST_FRAME_DIFFERENCE_MAX
            right_count += judge(frames) == wanted
    assert right_count >= ALL_RIGHT_MIN * MOVE_COUNT, f"{right_count} of {MOVE_COUNT}"
