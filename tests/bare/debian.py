"""A Debian root in a folder, made once, and commands in a copy of it: a machine that has nothing yet.

It takes root and debootstrap. Only the standard library is used, since this also runs before `make setup`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

RELEASE = "bookworm"
PACKAGES = ("ca-certificates", "git", "make", "python3", "python3-venv")
MIRROR = "http://deb.debian.org/debian"
NEWCOMER = "newcomer"
"""A user who may install nothing."""
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
KEPT_VARIABLES = ("http_proxy", "https_proxy", "no_proxy")
"""What a network may need."""
MOUNTS = """
set -e
cd "$1"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
for node in null zero full random urandom tty; do touch dev/$node; mount --bind /dev/$node dev/$node; done
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs dev/shm
shift
while [ "$1" != -- ]; do mount --bind -o ro "$1" ".$1"; shift; done
shift
"""
"""A shell's beginning, in namespaces of its own: its mounts and processes end with it. Takes the root, local folders to
show in it, and the command."""


def find_or_make() -> Path:
    """The Debian root that runs are copied from."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triptych"
    base = cache / f"bare-{RELEASE}"
    if not base.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="bare-", dir=cache) as folder:
            made = Path(folder) / "root"
            include = ",".join(PACKAGES)
            call("debootstrap", "--variant=minbase", f"--include={include}", RELEASE, str(made), MIRROR)
            call("chroot", str(made), "useradd", "--create-home", "--shell", "/bin/bash", NEWCOMER)
            made.rename(base)
    return base


def copy(base: Path, root: Path) -> list[str]:
    """Make a root of one's own; the local folders of pip's that are to be shown in it."""
    call("cp", "-a", "--reflink=auto", str(base), str(root))
    shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")
    return bring_pip_settings(root)


def inside(
    root: Path, folders: Sequence[str], user: str, variables: Mapping[str, str], command: Sequence[str]
) -> list[str]:
    """A command that runs another in a root, as `user:group`, with these variables and the network's."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    environment = ["env", "-i", *(f"{name}={value}" for name, value in {**kept, **variables}.items())]
    chroot = ["chroot", f"--userspec={user}", str(root), *environment, *command]
    namespaces = ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child"]
    return [*namespaces, "bash", "-c", f'{MOUNTS}exec "$@"', "bash", str(root), *folders, "--", *chroot]


def bring_pip_settings(root: Path) -> list[str]:
    """Write this machine's settings of pip into the root, with the files that they name; the folders that they name."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    settings: dict[str, str] = {}
    folders: set[str] = set()
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        name, value = key.rpartition(".")[2], value.strip("'\"")
        settings[name] = value
        for word in value.replace("\\n", " ").split():
            named = Path(word.removeprefix("file://"))
            if named.is_file():
                (root / named.relative_to("/")).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(named, root / named.relative_to("/"))
            elif named.is_absolute() and named.is_dir():
                # An index is often a folder of links to files that lie beside it.
                folders.add(str(named.parent if word.startswith("file://") else named))
    for folder in folders:
        (root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
    lines = ["[global]", *(f"{name} = {value}" for name, value in settings.items())]
    (root / "etc" / "pip.conf").write_text("\n".join(lines) + "\n")
    return sorted(folders)


def call(*command: str) -> None:
    """Run a command that has to succeed; what it prints is shown where it doesn't."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise subprocess.CalledProcessError(done.returncode, command[0])
