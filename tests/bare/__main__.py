"""Run a command in a clone of this repository on a new Debian 12, with Python 3.11, make and git, and nothing else.

    python3 tests/bare --user newcomer 'make demo'

It takes root, debootstrap and half a GB for the Debian root, which is made once, in the cache folder of whoever runs
this; each run has a copy of its own, which is gone afterwards. `root` installs what it likes there, `newcomer` may not.
pip works as it does here: with this machine's settings, and the local folders that these name. The clone is of the last
commit. The exit status is the command's; 125 is trouble with the root itself.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TROUBLE = 125
"""The exit status where not the command failed but the root."""
RELEASE = "bookworm"
PACKAGES = ("ca-certificates", "git", "make", "python3", "python3-venv")
MIRROR = "http://deb.debian.org/debian"
PROJECT = Path(__file__).parents[2]
USERS = ("root", "newcomer")
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


def main() -> int:
    """Do what the command line says and return the exit status."""
    parser = argparse.ArgumentParser(
        "python3 tests/bare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--user", choices=USERS, default="root")
    parser.add_argument("command", help="for a shell, in the clone")
    arguments = parser.parse_args()
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        print("a Debian root takes root, and debootstrap: apt-get install debootstrap", file=sys.stderr)
        return TROUBLE
    try:
        base = find_or_make()
        with tempfile.TemporaryDirectory(prefix="triptych-bare-") as folder:
            return run(base, Path(folder) / "root", arguments.user, arguments.command)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"the Debian root: {error}", file=sys.stderr)
        return TROUBLE


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
            call("chroot", str(made), "useradd", "--create-home", "--shell", "/bin/bash", USERS[1])
            made.rename(base)
    return base


def run(base: Path, root: Path, user: str, command: str) -> int:
    """Run the command in a copy of the Debian root; its exit status."""
    call("cp", "-a", "--reflink=auto", str(base), str(root))
    home = Path("/root") if user == "root" else Path("/home") / user
    clone = root / home.relative_to("/") / PROJECT.name
    call("git", "-c", "safe.directory=*", "clone", "--quiet", "--no-hardlinks", f"file://{PROJECT}", str(clone))
    shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")
    folders = bring_pip_settings(root)
    call("chroot", str(root), "chown", "-R", f"{user}:", str(home))
    variables = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    variables |= {"HOME": str(home), "USER": user, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    shell = f"cd {shlex.quote(PROJECT.name)} && {command}"
    inside = ["env", "-i", *(f"{name}={value}" for name, value in variables.items()), "bash", "-c", f"cd; {shell}"]
    chroot = ["chroot", f"--userspec={user}:{user}", str(root), *inside]
    namespaces = ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child"]
    script = f'{MOUNTS}exec "$@"'
    return subprocess.call([*namespaces, "bash", "-c", script, "bash", str(root), *folders, "--", *chroot])


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


if __name__ == "__main__":
    sys.exit(main())
