"""`triptych tokens`: who may call, as a file that the controller and workers read."""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import sys
from pathlib import Path

from triptych.errors import InvalidRequest
from triptych.security import tokens
from triptych.security.identity import SCOPES
from triptych_client.commands.output import show
from triptych_client.tables import Table

OWNER_ONLY = 0o600


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    example = "triptych tokens add bob --scope submit -o bob.token"
    add = actions.add_parser("add", help="make a token and write or print it, once", example=example)
    add.add_argument("--scope", action="append", required=True, choices=SCOPES, help="what it is good for (repeat)")
    add.add_argument("--jobs-max", type=int, default=0, metavar="N", help="unfinished jobs (default: no limit)")
    about = "write it to a new file that only its owner may read"
    add.add_argument("-o", "--output", default="", metavar="FILE", help=about)
    example = "triptych tokens list"
    listed = actions.add_parser("list", help="list names, scopes and limits", example=example)
    example = "triptych tokens remove alice"
    remove = actions.add_parser("remove", help="take a token away, immediately", example=example)
    for one in (add, remove):
        one.add_argument("name", metavar="NAME")
    for one in (add, listed, remove):
        one.add_argument("--tokens", default="tokens.toml", metavar="FILE", help="default: %(default)s")


def run(args: argparse.Namespace) -> None:
    """Add, remove or list."""
    path = Path(args.tokens)
    if args.action == "add" and args.output:
        _add_to_file(args, path, Path(args.output))
    elif args.action == "add":
        _add_and_print(args, path)
    elif args.action == "remove":
        tokens.remove(path, args.name)
    else:
        rows = []
        for identity in tokens.read(path):
            limit = f"{identity.jobs_max} jobs" if identity.jobs_max else "no limit"
            name = identity.name.partition(":")[2]  # as the file has it, and as `remove` takes it
            rows.append((name, ", ".join(sorted(identity.scopes)), limit))
        show(Table("tokens", ("name", "scopes", "limit"), rows, str(path), prose=("scopes",)))


def _add_and_print(args: argparse.Namespace, path: Path) -> None:
    _keep_from_others()
    token = tokens.add(path, args.name, args.scope, args.jobs_max)
    try:
        print(token, flush=True)
    except OSError:  # the caller has not seen it
        tokens.remove(path, args.name)
        raise


def _add_to_file(args: argparse.Namespace, path: Path, output: Path) -> None:
    """The file comes first: otherwise a token that was never written could be in the list."""
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY)
    except OSError as error:
        raise InvalidRequest("output", str(output), f"a name that is free, in a folder ({error.strerror})") from error
    try:
        with open(descriptor, "w") as file:
            token = tokens.add(path, args.name, args.scope, args.jobs_max)
            try:
                file.write(token + "\n")
                file.flush()
                os.fsync(descriptor)
            except OSError:
                tokens.remove(path, args.name)
                raise
    except BaseException:
        output.unlink()
        raise


def _keep_from_others() -> None:
    """Where the shell has made a file for the token (`> FILE`), only its owner may read it."""
    if sys.stdout is None:
        return
    with contextlib.suppress(OSError):  # another user's file, or none
        found = os.fstat(sys.stdout.fileno())
        if stat.S_ISREG(found.st_mode):
            os.fchmod(sys.stdout.fileno(), stat.S_IMODE(found.st_mode) & OWNER_ONLY)
