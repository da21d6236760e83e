"""Torch in this process: the device that a stage computes on, settings that decide bits, and the global generators."""

from __future__ import annotations

import platform
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from triptych.errors import InvalidRequest
from triptych.stages.library import diffusers
from triptych.stages.library_errors import said


def open_device(name: str) -> torch.device:
    """Torch's device of that name. Raises `InvalidRequest` where there is none that computes."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidRequest("device", name, "a device of torch, for example cpu or cuda:0") from error
    if device.type == "meta":
        raise InvalidRequest("device", name, f"a device that computes; here: {', '.join(_devices())}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InvalidRequest("device", name, "cpu, because torch finds no CUDA device here")
        device = torch.device("cuda", device.index or 0)
    try:
        torch.zeros(1, device=device).add_(1)
    except Exception as error:
        raise InvalidRequest("device", name, f"one that works here: {', '.join(_devices())} ({said(error)})") from error
    return device


def _devices() -> list[str]:
    """Torch's names of the devices of this machine."""
    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def settings_of(device: torch.device, dtype: str) -> dict[str, str]:
    """The value of `AnyStage.settings`.

    Torch's kernels differ between its builds; on a CPU some add up by threads. Diffusers reads the kind of attention
    from an environment variable of its own.
    """
    settings = {
        "device": device.type,
        "dtype": dtype,
        "torch": torch.__version__,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "attention": diffusers.utils.constants.DIFFUSERS_ATTN_BACKEND,
    }
    if device.type == "cuda":
        return {**settings, "hardware": torch.cuda.get_device_name(device)}
    hardware = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {**settings, "threads": str(torch.get_num_threads()), "hardware": hardware}


@contextmanager
def global_rng(device: torch.device, seed: int, crossed: Mapping[str, torch.Tensor] | None) -> Iterator[None]:
    """Runs a stage on the job's own stream of the global generators, and gives the process its own back.

    Some decoders draw from the global generator; without this a redelivered job would differ.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        if crossed is not None:
            torch.set_rng_state(crossed["cpu"].cpu())
            if device.type == "cuda" and "cuda" in crossed:
                torch.cuda.set_rng_state(crossed["cuda"].cpu(), device)
        yield


def rng_state(device: torch.device, crossed: Mapping[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """States of the global generators, to be handed on. Called inside `global_rng`."""
    states = dict(crossed or {})
    states["cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave every global generator, of torch (CPU and CUDA), numpy and Python, as it was before the block.

    Models draw from them when they are made, and some are made at their first use, in the middle of a job. Without this
    the first job after a start would differ from the second.
    """
    python = random.getstate()
    legacy_numpy = np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy_numpy)
