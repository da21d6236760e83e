"""The wheel as somebody installs it: in an environment that knows nothing of this folder, it runs and is typed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.clients.test_up import MODEL, ROOT, SMALL, STEPS_S, wait_for
from tests.fleet.processes import free_port

PACKAGES = {"triptych", "triptych_client", "triptych_services"}
BUILD_S = 180.0
USER_CODE = """
from triptych import errors
from triptych_client import Client
reveal_type(Client("127.0.0.1:7070").generate)
reveal_type(errors.InvalidRequest.from_message)
import triptych_services.process
"""
ENV = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TRIPTYCH_"))}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the tree as it is now."""
    folder = tmp_path_factory.mktemp("dist")
    pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel, in which this environment stands for the downloads of the extra.

    A `.pth` file in it is read for its own folder only, so the editable install of this checkout doesn't count there.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    pip("--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "serve.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def pip(*args: str | Path) -> None:
    command = (sys.executable, "-m", "pip", *map(str, args))
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_top_level_packages_are_ours_by_name_and_typed(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == PACKAGES
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)


def test_a_fleet_runs_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    command = (installed / "triptych", "up", "--model", MODEL, "--state", tmp_path / "state", "--endpoint", endpoint)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENV, cwd=tmp_path) as up:
        try:
            wait_for(up, f"the fleet is ready on {endpoint}")
            commands = Path(f"/proc/{up.pid}/task/{up.pid}/children").read_text().split()
            lines = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in commands]
            assert sum(f"{installed}/python -P -m triptych_services." in line for line in lines) == 4, lines
            generate = (installed / "triptych", "generate", "a circle", *SMALL, "2", "-o", "out.npy")
            subprocess.run((*generate, "--endpoint", endpoint), env=ENV, cwd=tmp_path, timeout=STEPS_S, check=True)
            assert (tmp_path / "out.npy").stat().st_size > 0
        finally:
            up.send_signal(signal.SIGINT)
        wait_for(up, "draining")
        assert up.wait(STEPS_S) == 0


def test_another_package_may_be_called_services(installed: Path, tmp_path: Path) -> None:
    code = "import importlib.util as util; assert util.find_spec('services') is None"
    subprocess.run((installed / "python", "-c", code), env=ENV, cwd=tmp_path, check=True)


def test_a_user_sees_its_types(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(USER_CODE)
    command = (sys.executable, "-m", "mypy", "--strict", "--python-executable", installed / "python", "user.py")
    done = subprocess.run(command, env=ENV, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    revealed = [line for line in done.stdout.splitlines() if "Revealed type" in line]
    assert "triptych_client.job_states.Generated" in revealed[0]
    assert "triptych.errors.InvalidRequest" in revealed[1]
