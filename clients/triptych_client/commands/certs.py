"""`triptych certs`: certificates for fleets that have no mesh and no cert-manager."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

from triptych.errors import InvalidRequest
from triptych_client import authority
from triptych_client.terminal import visible

HOSTS_ALWAYS = ("localhost", "127.0.0.1", "::1")
"""What a fleet of one machine calls itself."""


ACTIONS = {
    "init": "make an authority and a certificate for each role",
    "renew": "make new certificates by the same authority; running processes take them up",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the actions, each with the same flags."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, about in ACTIONS.items():
        example = f"triptych certs {action} my-certs --host localhost"
        one = actions.add_parser(action, help=about, description=about, example=example)
        one.add_argument("folder", metavar="DIR")
        about = "DNS name or IP of a machine (may be repeated)"
        one.add_argument("--host", action="append", default=[], metavar="NAME", help=about)
        about = "valid for so long (default: %(default)s)"
        one.add_argument("--days", type=int, default=authority.DAYS_DEFAULT, metavar="N", help=about)


def run(args: argparse.Namespace) -> None:
    """Make or renew, and say where they are."""
    folder = Path(args.folder)
    try:
        about = _act(args, folder)
    except OSError as error:
        raise InvalidRequest("folder", args.folder, f"a folder that can be written ({error.strerror})") from error
    print(visible(f"{folder}: {about}"))


def _act(args: argparse.Namespace, folder: Path) -> str:
    if args.action == "init":
        authority.init(folder, [*(args.host or [socket.gethostname()]), *HOSTS_ALWAYS], args.days)
        return f"keep {folder / authority.AUTHORITY} secret; give each process the folder of its role as tls"
    authority.renew(folder, [*args.host, *HOSTS_ALWAYS] if args.host else (), args.days)
    return "renewed; processes take the files up with their next connections"
