"""What the guest needs of the host: Debian's packages, and a folder to keep the guest's kernel in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "/usr/bin/qemu-system-x86_64": "qemu-system-x86",  # emulates the guest
    "/usr/bin/rdma": "iproute2",  # makes its wire and its devices; the guest sees the host's programs
    "/usr/bin/ibv_devinfo": "ibverbs-utils",  # shows them
    "/etc/libibverbs.d/rxe.driver": "ibverbs-providers",  # lets libibverbs use them
}
"""Files that must be there, each with the package that brings it."""


class VmError(Exception):
    """Trouble with the guest itself, and not with the command in it; the message is one sentence."""


def run(*command: str, folder: Path | None = None) -> str:
    """Run a program of the host and return what it wrote to stdout; where it fails, raise its last word as VmError."""
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise VmError(f"this host has no {command[0]}, so it isn't Debian 12") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().rpartition("\n")[2] or f"exit status {error.returncode}"
        raise VmError(f"`{' '.join(command)}` failed: {said}") from None


def install_packages() -> None:
    """Install those of `PACKAGES` that are missing. Only root can; for anybody else they are named in a VmError."""
    missing = [package for file, package in PACKAGES.items() if not os.path.exists(file)]
    if missing and os.geteuid():
        raise VmError(f"Debian packages are missing, install them with: sudo apt-get install {' '.join(missing)}")
    if missing:
        say(f"installing {' '.join(missing)}")
        refresh_package_lists()
        run("apt-get", "install", "--yes", "--no-install-recommends", *missing)


def refresh_package_lists() -> None:
    """Let apt learn what there is, where this is root: the lists may never have been fetched, or name what is gone."""
    if not os.geteuid():
        run("apt-get", "update")


def cache_folder() -> Path:
    """Return the folder for built images: TRIPTYCH_VM_CACHE, else one in the user's usual cache."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "triptych-vm")
    folder = Path(os.environ.get("TRIPTYCH_VM_CACHE") or usual).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def say(what: str) -> None:
    """Tell the user something, on stderr."""
    print(f"triptych-vm: {what}", file=sys.stderr, flush=True)
