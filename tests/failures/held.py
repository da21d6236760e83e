"""Real components that can be made to hang, or to take their process with them: named by a model's `model_index.json`.

What they do stands in the folder that the variable `HOLD` names, so that a test decides at any moment:

* a file `hold-PID` holds the process PID where its component works, until the file is gone. Its other threads go on.
  Where it has a number in it, a scheduler waits only once it has made so many steps in all its life.
* a file `kill-STEPS` kills every process that begins to denoise a job of so many steps.
* a file `spoil-STEPS` goes, with the process that finds it so, by the error of a CUDA context that is lost.
* a file `starve-STEPS` has every such process ask for more memory than any machine has, or for as many bytes as the
  file says.
* each step adds a byte to `steps-PID`.

Otherwise they are what they inherit from, bit by bit.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

POLL_S = 0.01
HUGE_BYTES = 2**50
"""More than an address space has."""


def _folder() -> Path:
    return Path(os.environ.get("HOLD", "/nonexistent"))


def _steps() -> Path:
    return _folder() / f"steps-{os.getpid()}"


def _hold() -> None:
    mine = _folder() / f"hold-{os.getpid()}"
    try:
        after = int(mine.read_text() or 0)
    except FileNotFoundError:
        return
    if not after or _steps().stat().st_size >= after:
        mine.with_name(f"held-{os.getpid()}").touch()
        while mine.exists():
            time.sleep(POLL_S)


class HeldScheduler(diffusers.UniPCMultistepScheduler):
    """Hangs before a step; kills, spoils and starves before the first."""

    def set_timesteps(self, num_inference_steps: int | None = None, *args: Any, **kwargs: Any) -> Any:
        if (_folder() / f"kill-{num_inference_steps}").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if (spoiling := _folder() / f"spoil-{num_inference_steps}").exists():
            spoiling.unlink()
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        if (starving := _folder() / f"starve-{num_inference_steps}").exists():
            torch.empty(int(starving.read_text() or HUGE_BYTES), dtype=torch.uint8)
        return super().set_timesteps(num_inference_steps, *args, **kwargs)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        if _folder().exists():
            _steps().touch()
        _hold()
        if _folder().exists():
            with _steps().open("ab") as count:
                count.write(b".")
        return super().step(*args, **kwargs)


class HeldEncoder(transformers.UMT5EncoderModel):
    """Hangs before it encodes."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        _hold()
        return super().forward(*args, **kwargs)


class HeldVae(diffusers.AutoencoderKLWan):
    """Hangs before it decodes."""

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        _hold()
        return super().decode(*args, **kwargs)
