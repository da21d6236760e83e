"""The demo shows what was asked: a fixed grid of prompts through the services, judged from the pixels of the files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np

from judge import judge
from measure import choose_prompts
from tests.fleet.processes import Fleet

MODEL = Path(__file__).parents[2] / "examples" / "shapes" / "model"
PROMPT_COUNT = 32
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
