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

import debian

TROUBLE = 125
"""The exit status where not the command failed but the root."""
PROJECT = Path(__file__).parents[2]
USERS = ("root", debian.NEWCOMER)


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
        base = debian.find_or_make()
        with tempfile.TemporaryDirectory(prefix="triptych-bare-") as folder:
            return run(base, Path(folder) / "root", arguments.user, arguments.command)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"the Debian root: {error}", file=sys.stderr)
        return TROUBLE


def run(base: Path, root: Path, user: str, command: str) -> int:
    """Run the command in a copy of the Debian root; its exit status."""
    folders = debian.copy(base, root)
    home = Path("/root") if user == "root" else Path("/home") / user
    clone = root / home.relative_to("/") / PROJECT.name
    debian.call("git", "-c", "safe.directory=*", "clone", "--quiet", "--no-hardlinks", f"file://{PROJECT}", str(clone))
    debian.call("chroot", str(root), "chown", "-R", f"{user}:", str(home))
    variables = {"HOME": str(home), "USER": user, "PATH": debian.PATH, "LANG": "C.UTF-8"}
    shell = ["bash", "-c", f"cd; cd {shlex.quote(PROJECT.name)} && {command}"]
    return subprocess.call(debian.inside(root, folders, f"{user}:{user}", variables, shell))


if __name__ == "__main__":
    sys.exit(main())
