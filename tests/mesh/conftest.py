"""A fleet of fake stages behind the real Envoy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.processes import Fleet
from tests.mesh.browser import build
from tests.mesh.proxy import Proxy, envoy

FAKE = ("--fake-stage-seconds", "0.3", "--mover", "rpc")


@pytest.fixture(scope="session")
def mesh_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One of each role, shared by tests that don't hurt it."""
    with Fleet(tmp_path_factory.mktemp("fleet"), "", worker_flags=FAKE) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def proxy(mesh_fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Envoy before that fleet's controller."""
    with envoy(tmp_path_factory.mktemp("proxy") / "envoy", [mesh_fleet.endpoint]) as started:
        yield started


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tests' page in a bundle."""
    folder = tmp_path_factory.mktemp("web")
    build(folder)
    return folder
