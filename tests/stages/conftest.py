"""Tiny models, made once for all tests, and small helpers around stages."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from tests import models
from triptych.roles import ROLES
from triptych.stages.describe import describe
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole

FAMILIES = ("wan_t2v", "qwen_image", "sd3", "ltx_image")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny model by the name of its maker in `tests.models`."""
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> str:
        if name.endswith(":modular"):
            name = name.removesuffix(":modular")
            return models.modular(getattr(models, name)(root / name), root / f"{name}_modular")
        return getattr(models, name)(root / name)

    return folder


@pytest.fixture(scope="session")
def model(folder_of: Callable[[str], str]) -> Callable[[str], types.SimpleNamespace]:
    """A model opened and loaded once: `whole`, `description`, `stages`, `folder`."""
    loaded: dict[str, types.SimpleNamespace] = {}

    def get(name: str) -> types.SimpleNamespace:
        if name not in loaded:
            whole = Whole.open(folder_of(name))
            stages = [Stage.load(whole, role) for role in ROLES]
            loaded[name] = types.SimpleNamespace(
                whole=whole, description=describe(whole), stages=stages, folder=folder_of(name)
            )
        return loaded[name]

    return get


def picture(height: int = 32, width: int = 64, seed: int = 0) -> PIL.Image.Image:
    """A picture of noise."""
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def run_stages(stages: list[Stage], values: dict[str, object], steps: list[Any] | None = None) -> dict[str, object]:
    """The stages in a row, in this process."""
    for stage in stages:
        values = stage.run(values, (steps if steps is not None else []).append, lambda: False)
    return values


def assert_equal_bits(left: Any, right: Any) -> None:
    """Both results hold the same pictures or frames, bit for bit, and aren't flat."""
    left, right = np.asarray(left), np.asarray(right)
    assert left.dtype == right.dtype
    assert left.shape == right.shape
    assert np.array_equal(left, right)
    assert left.std() > 0, "a flat picture proves nothing"
