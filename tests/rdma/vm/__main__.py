"""Run a command in a throw-away guest with two RoCE devices, on any x86-64 machine with Debian 12.

    python3 tests/rdma/vm run 'ibv_devinfo'

QEMU emulates the whole machine in software, so no RDMA hardware and no KVM is needed. The guest has Debian's kernel and
its soft-RoCE, rxe0 at 192.0.2.1 and rxe1 at 192.0.2.2 on one wire, and sees this host's files. What it writes is gone
with it, except under `--writable`. The exit status is the command's; 125 is trouble with the guest itself.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

import guest
import host
import image

TROUBLE = 125
"""The exit status where not the command failed but the guest."""
SIGNALLED = 128
"""The exit status of what a signal ended is this and the signal's number."""


def main() -> int:
    """Do what the command line says and return the exit status."""
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)
    arguments = parse_arguments()
    try:
        host.install_packages()
        folder = image.find_or_build()
        if arguments.action == "build":
            print(folder)
            return 0
        chosen = {name: value for name, value in vars(arguments).items() if name not in ("action", "command")}
        return guest.run(guest.Guest(**chosen), folder, arguments.command)
    except BrokenPipeError:
        return SIGNALLED + signal.SIGPIPE
    except (host.VmError, OSError) as error:
        host.say(str(error))
        return TROUBLE


def leave(number: int, frame: FrameType | None) -> None:
    """End this process where it stands, after it has cleared up."""
    sys.exit(SIGNALLED + number)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "python3 tests/rdma/vm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("build", help="only fetch and build what a guest needs, and say where it is")
    run = actions.add_parser(
        "run", help="run a command of bash", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    run.add_argument("--memory-mib", type=int, default=2048, help="the guest's memory")
    run.add_argument("--cpus", type=int, default=2, help="the guest's processors")
    run.add_argument("--timeout-s", type=int, default=600, help="how long the guest may live, boot included")
    run.add_argument("--writable", type=folder, metavar="DIR", help="what is written to this folder stays")
    run.add_argument("--kernel-log", type=Path, metavar="FILE", help="what the guest's kernel says")
    run.add_argument("command")
    return parser.parse_args()


def folder(name: str) -> Path:
    """Return the path of a folder that exists."""
    path = Path(name).resolve()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{name} is no folder")
    return path


if __name__ == "__main__":
    sys.exit(main())
