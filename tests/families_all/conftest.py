"""One fleet at a time, over the model of the job that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.families import ip_adapters, zoo
from tests.families.cases import MODELS, Case
from tests.fleet.parked import Parked, ParkedFleet


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def fleet_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Case], ParkedFleet]]:
    """The fleet of a job's model: the one that runs, or else a new one in its place."""
    root = tmp_path_factory.mktemp("fleets")
    running: list[ParkedFleet] = []

    def stop() -> None:
        while running:
            running.pop().__exit__(None, None, None)

    def of(case: Case) -> ParkedFleet:
        model = folder_of(case, root)
        if not running or running[0].model != model:
            stop()
            flags = ("--adapters", str(ip_adapters.registry(model, case)))
            fleet = ParkedFleet(parked, root / f"{Path(model).name}-fleet", model, worker_flags=flags)
            running.append(fleet.__enter__())
        return running[0]

    with Parked() as parked:
        try:
            yield of
        finally:
            stop()


def folder_of(case: Case, root: Path) -> str:
    """The folder of a job's model."""
    family, parts = MODELS.get(case.model, (case.family, {}))
    return zoo.make(family, root / (case.model or case.family), **parts)
