"""Commands are typed where other people's files lie: none of these is run, whatever it is called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.test_up import SMALL, STEPS_S, wait_for
from tests.fleet.processes import free_port

MODEL = Path(__file__).parents[2] / "examples" / "shapes" / "model"
SCRIPT = Path(sys.executable).with_name("triptych")
NAMES = (
    *("types", "enum", "json", "logging", "signal", "socket", "ssl", "random", "sqlite3", "tomllib", "uuid"),
    *("torch", "numpy", "grpc", "diffusers", "transformers", "accelerate", "safetensors", "av", "fsspec", "rich"),
    *("xxhash", "psutil", "cryptography", "sitecustomize", "usercustomize", "mooncake", "pyverbs", "ibverbs"),
)
"""What Python, its library, our dependencies and our own code import."""
PACKAGES = (
    *("services", "triptych", "triptych_client", "triptych_services"),
    *("google", "PIL", "opentelemetry", "grpc_health", "tests"),
)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder in which every module leaves a mark when it is run, and stops whoever runs it."""
    folder = tmp_path / "somebody's"
    marks = folder / "ran"
    marks.mkdir(parents=True)
    files = [folder / f"{name}.py" for name in NAMES]
    for package in PACKAGES:
        (folder / package).mkdir()
        files += [folder / package / name for name in ("__init__.py", "__main__.py", "controller.py", "cli.py")]
    for file in files:
        mark = str(marks / file.relative_to(folder).as_posix().replace("/", "."))
        file.write_text(f"open({mark!r}, 'w').close()\nraise SystemExit('run: ' + __file__)\n")
    return folder


def triptych(folder: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    command = (str(SCRIPT), *map(str, args))
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=STEPS_S, check=False
    )


def environment() -> dict[str, str]:
    """As of a shell in which the project is installed."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TRIPTYCH_"))}


def marks(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "ran").iterdir())


def test_a_fleet_runs_nothing_of_the_folder_where_it_is_started(hostile: Path) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    command = (str(SCRIPT), "up", "--model", str(MODEL), "--endpoint", endpoint)
    picture = ("generate", "a circle", *SMALL, "1", "-o", "out.npy", "--endpoint", endpoint)
    with subprocess.Popen(command, cwd=hostile, env=environment(), stderr=subprocess.PIPE, text=True) as up:
        try:
            wait_for(up, f"the fleet is ready on {endpoint}")
            for args in (picture, ("backup", "copy"), ("status", "--json", "--endpoint", endpoint)):
                done = triptych(hostile, *args)
                assert done.returncode == 0, done.stderr
            assert len(json.loads(done.stdout)["workers"]) == 3
        finally:
            up.terminate()
            assert up.wait(STEPS_S) == 0
    assert (hostile / ".triptych" / "journal.db").exists(), "what is meant to lie here does"
    assert marks(hostile) == []


@pytest.mark.parametrize("way", [(), ("--fused",)], ids=["a fleet of its own", "fused"])
def test_generate_runs_nothing_of_the_folder_where_it_is_started(hostile: Path, way: tuple[str, ...]) -> None:
    made = triptych(hostile, "generate", "a circle", *SMALL, "1", "--model", MODEL, "-o", "out.npy", *way)
    assert (made.returncode, made.stdout) == (0, "out.npy\n"), made.stderr
    assert marks(hostile) == []


@pytest.mark.parametrize("args", [("doctor",), ("--help",), ("certs", "init", "certs"), ("tokens", "list")])
def test_other_commands_run_nothing_either(hostile: Path, args: tuple[str, ...]) -> None:
    assert "run: " not in triptych(hostile, *args).stderr
    assert marks(hostile) == []


def test_the_marks_would_be_made(hostile: Path) -> None:
    """Else the tests above would prove nothing: as processes were started before, they ran what lay there."""
    command = (sys.executable, "-m", "services.controller", "--help")
    done = subprocess.run(
        command, cwd=hostile, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert marks(hostile) != []
    safe = (sys.executable, "-P", *command[1:])
    assert subprocess.run(safe, cwd=hostile, env=environment(), capture_output=True, timeout=60).returncode == 0
