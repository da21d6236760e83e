"""A training run planned by the clock: learning rate, checkpoints and reports follow from the minutes it may take."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

CHECKPOINT_INTERVAL_S = 60.0
REPORT_INTERVAL_S = 20.0
WARMUP_FRACTION = 0.02
LEARNING_RATE_FLOOR = 0.02  # of the peak, where the cosine ends


class Run:
    """Wall-clock progress of one training run; it survives restarts through a checkpoint.

    Iterate over it: it yields step numbers until the minutes are used up, and saves as it goes. Set `report` to a line
    worth printing. Because the plan follows the clock, two runs of one seed see the same data in the same order but
    stop at different steps.
    """

    def __init__(
        self,
        checkpoint: Path,
        minutes: float,
        modules: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        peak: float,
    ) -> None:
        self.checkpoint, self.minutes, self.modules = checkpoint, minutes, modules
        self.optimizer, self.peak = optimizer, peak
        self.step = 0
        self.report = ""
        self._before_s = 0.0
        if checkpoint.exists():
            self._load()
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds trained, over all restarts."""
        return self._before_s + time.monotonic() - self._started

    @property
    def fraction(self) -> float:
        """How much of the minutes is used up, 0 to 1."""
        return min(1.0, self.elapsed_s / (self.minutes * 60)) if self.minutes else 1.0

    def __iter__(self) -> Iterator[int]:
        saved = reported = time.monotonic()
        while self.fraction < 1:
            self._set_learning_rate()
            yield self.step
            self.step += 1
            now = time.monotonic()
            if now - reported > REPORT_INTERVAL_S:
                print(f"{self.elapsed_s / 60:6.1f} min  step {self.step:6d}  {self.report}", flush=True)
                reported = now
            if now - saved > CHECKPOINT_INTERVAL_S:
                self.save()
                saved = now
        if self.step:
            self.save()

    def _set_learning_rate(self) -> None:
        cosine = (1 + math.cos(math.pi * self.fraction)) / 2
        rate = self.peak * max(LEARNING_RATE_FLOOR, cosine) * min(1.0, self.fraction / WARMUP_FRACTION + 0.01)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def save(self) -> None:
        """Write the checkpoint; a reader sees the old one or the new one."""
        fresh = self.checkpoint.with_suffix(".new")
        state = {name: module.state_dict() for name, module in self.modules.items()}
        torch.save(
            {"step": self.step, "elapsed_s": self.elapsed_s, "optimizer": self.optimizer.state_dict(), **state}, fresh
        )
        os.replace(fresh, self.checkpoint)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self._before_s = state["step"], state["elapsed_s"]
