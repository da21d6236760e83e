"""Stages: split any diffusers pipeline into encoder, transformer and decoder, load one, run it.

    from triptych.model.inputs import resolve
    from triptych.roles import ROLES
    from triptych.stages.describe import describe
    from triptych.stages.stage import Stage
    from triptych.stages.whole import Whole

    whole = Whole.open("path/or/hub-id")
    stages = [Stage.load(whole, role) for role in ROLES]
    values = resolve(request, describe(whole)).for_encoder()
    for stage in stages:
        values = stage.run(values, on_step, cancelled)

No gRPC, no rings, and no code per model family: `denoise` in the pipeline's own blocks says where to cut. What is
defined here is what a worker asks of its stage. It imports no torch, so that a worker with a fake stage starts fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from triptych.v1.dispatch_pb2 import Role


class Step(NamedTuple):
    """One step done."""

    step: int
    """Steps done, from 1. Counts on where a pipeline runs several loops."""
    step_count: int
    """Steps in all, as far as known."""
    preview_png: bytes
    """A PNG of the latents; empty unless this step's preview was asked for."""


class Place(NamedTuple):
    """One process of several that run a role together."""

    rank: int
    """From 0, which leads."""
    size: int
    """How many they are."""
    rendezvous: str
    """A file, not there yet, by which the processes find each other."""
    timeout_s: float
    """After so long without an answer the others count as lost."""


class AnyStage(Protocol):
    """`stage.Stage`, or a stand-in for it (`fake.FakeStage`). See there."""

    role: Role.ValueType
    component_bytes: dict[str, int]
    """Bytes of parameters and saved buffers of the components that this role holds."""
    settings: dict[str, str]
    """Settings that decide bits and aren't the model's. Workers of one role must agree in all but `hardware`. Lossy
    means in use are named under `lossy`, too, one a line."""

    @property
    def tokens_cut(self) -> Sequence[tuple[str, str, int]]:
        """Input, tokenizer and number of the tokens that it cut off in the last job. Only encoders have any."""

    @property
    def device_memory_bytes(self) -> int:
        """Memory of the device that this process has taken."""

    @property
    def device_uuid(self) -> str:
        """The UUID of an NVIDIA device, without NVML's prefix `GPU-`; empty where the role computes on another."""

    def run(
        self,
        inputs: Mapping[str, object],
        on_step: Callable[[Step], None],
        cancelled: Callable[[], bool],
    ) -> dict[str, object]:
        """Runs the role for one job."""
