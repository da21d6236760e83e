"""`triptych tokens`: who may call, as a file that the controller and workers read."""

from __future__ import annotations

import argparse
from pathlib import Path

from triptych import tokens


def run(args: argparse.Namespace) -> None:
    """Add, remove or list."""
    path = Path(args.tokens)
    if args.action == "add":
        print(tokens.add(path, args.name, args.scope, args.jobs_max))
    elif args.action == "remove":
        tokens.remove(path, args.name)
    else:
        for identity in tokens.read(path):
            limit = f"{identity.jobs_max} jobs" if identity.jobs_max else "no limit"
            name = identity.name.partition(":")[2]  # as the file has it, and as `remove` takes it
            print(f"{name}  {', '.join(sorted(identity.scopes))}  {limit}")
