"""The torch device that a stage computes on, and the settings of it that decide bits."""

from __future__ import annotations

import platform

import torch

from triptych.errors import InvalidRequest
from triptych.stages.library import diffusers
from triptych.stages.loading import said


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
