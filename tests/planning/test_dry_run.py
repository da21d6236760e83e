"""A dry run says what a real one takes: rooms to the byte, the peak of activations within a stated ratio."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from triptych.model.inputs import resolve
from triptych.roles import ROLES, role_name
from triptych.stages.describe import describe
from triptych.stages.dry_run import ENTRIES, LONG_PROMPT, dry_run, room_bytes
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.v1.job_pb2 import GenerationRequest

MODEL = Path(__file__).parents[2] / "examples" / "shapes" / "model"
RATIO_MIN, RATIO_MAX = 0.8, 1.25
"""Measured over estimated, without convolutions' own buffers; docs/planning.md states what was measured."""


class Measured:
    """The peak of what a model's calls allocate, as torch's profiler sees the CPU's allocator, and what goes in.

    A convolution on a CPU unfolds its input into a buffer of many times its size, and drops it before it returns. Such
    buffers belong to the kernel, so `peak_bytes` leaves them out; `with_buffers_bytes` has them.
    """

    def __init__(self) -> None:
        self.peak_bytes = self.with_buffers_bytes = 0

    def watch(self, model: torch.nn.Module) -> None:
        for name in ENTRIES:
            if callable(original := getattr(model, name, None)):
                setattr(model, name, self._watched(original))

    def _watched(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = {id(leaf): leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
                result = original(*args, **kwargs)
            base = sum(tensor.nbytes for tensor in given.values())
            self._follow(base, seen.profiler.kineto_results.events())
            return result

        return call

    def _follow(self, live: int, events: list[Any]) -> None:
        until_ns = 0
        for event in sorted(events, key=lambda one: one.start_ns()):
            if event.name() == "aten::convolution":
                until_ns = event.end_ns()
            if event.name() != "[memory]":
                continue
            if event.start_ns() > until_ns:
                self.peak_bytes = max(self.peak_bytes, live)  # what the kernels before have left
            live += event.nbytes()
            self.with_buffers_bytes = max(self.with_buffers_bytes, live)
            if event.start_ns() > until_ns:
                self.peak_bytes = max(self.peak_bytes, live)


def test_a_dry_run_takes_what_a_real_one_takes() -> None:
    whole = Whole.open(str(MODEL))
    request = GenerationRequest(prompt=LONG_PROMPT, num_inference_steps=1)
    dry = dry_run(whole, request, dict.fromkeys(ROLES, torch.float32))
    values = resolve(request, describe(whole)).for_encoder()
    for role in ROLES:
        stage = Stage.load(whole, role, nonfinite="allow")
        measured = Measured()
        for name in stage.component_bytes:
            measured.watch(getattr(stage._pipeline, name))
        values = stage.run(values, lambda _step: None, lambda: False)
        ratio, with_buffers = (
            size / dry[role].activation_bytes for size in (measured.peak_bytes, measured.with_buffers_bytes)
        )
        print(f"{role_name(role)}: {measured.peak_bytes:,} bytes, {ratio:.3f} of the estimate; {with_buffers:.3f}")
        assert RATIO_MIN < ratio < RATIO_MAX, (role_name(role), measured.peak_bytes, dry[role])
        if role != ROLES[-1]:
            assert room_bytes(values) == dry[role].room_bytes
