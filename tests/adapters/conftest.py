"""Folders of tiny models, made once. All tests here need peft."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests import needs
from tests.adapters.loras import HAS_PEFT
from tests.families import zoo


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _peft():
    if not HAS_PEFT:
        needs.skip("peft isn't installed, which loads adapters: pip install 'triptych[serve]'")


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a family's tiny model."""
    root = tmp_path_factory.mktemp("families")
    return lambda family: zoo.make(family, root / family)
