"""`triptych certs`: certificates for fleets that have no mesh and no cert-manager."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

HOSTS_ALWAYS = ("localhost", "127.0.0.1", "::1")
"""What a fleet of one machine calls itself."""


def run(args: argparse.Namespace) -> None:
    """Make or renew, and say where they are."""
    from triptych_client import authority  # takes a while: it imports cryptography

    folder = Path(args.folder)
    if args.action == "init":
        authority.init(folder, [*(args.host or [socket.gethostname()]), *HOSTS_ALWAYS], args.days)
        print(f"{folder}: keep {folder / authority.AUTHORITY} secret; give each process the folder of its role as tls")
    else:
        authority.renew(folder, [*args.host, *HOSTS_ALWAYS] if args.host else (), args.days)
        print(f"{folder}: renewed; processes take the files up with their next connections")
