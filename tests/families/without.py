"""A Python in which a package isn't installed: a folder of links to all that is, and nothing else on the path."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
TIMEOUT_S = 200.0


def without(folder: Path, *packages: str) -> dict[str, str]:
    """The environment of such a Python, which has to be run with `-S`: the site's own packages are hidden so."""
    installed = Path(sysconfig.get_path("purelib"))
    hidden = {name for package in packages for name in _names(package)}
    folder.mkdir()
    for entry in installed.iterdir():
        if entry.name not in hidden:
            (folder / entry.name).symlink_to(entry)
    path = os.pathsep.join(map(str, (folder, ROOT, ROOT / "clients")))
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def run(folder: Path, packages: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python without packages."""
    return run_in(without(folder, *packages), [sys.executable, "-S", *arguments])


def run_in(environment: dict[str, str], command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of this repository in such an environment."""
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def _names(package: str) -> set[str]:
    """What the package put into the folder of packages, its own description among it."""
    files = importlib.metadata.files(package) or []
    return {file.parts[0] for file in files if file.parts[0] != ".."}
