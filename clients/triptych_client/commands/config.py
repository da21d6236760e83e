"""`triptych config`: is a fleet's or a role's file right, and what can such a file say."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from triptych.config import ControllerConfig, WorkerConfig, load
from triptych.means import options as means
from triptych.roles import ROLE_NAMES
from triptych_client import fleet_file
from triptych_client.commands.output import show
from triptych_client.fleet_plan import FleetPlan
from triptych_client.tables import Table

_ROLE, _CONTROLLER = "role", "controller"
EXAMPLE_MODEL = "owner/name"
"""Stands for the model where the file leaves it to the command line."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the actions."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    example = "triptych config check deploy/fleet.toml"
    check = actions.add_parser("check", help="say whether a file is right, without starting anything", example=example)
    check.add_argument("file", metavar="FILE")
    about = "what the file is for: triptych up --fleet, or --config of one service (default: %(default)s)"
    check.add_argument("--of", choices=("fleet", _ROLE, _CONTROLLER), default="fleet", help=about)
    example = "triptych config options"
    listed = actions.add_parser("options", help="list the means that a role's tables can say", example=example)
    listed.add_argument("--json", action="store_true", help="print JSON, for scripts")


def run(args: argparse.Namespace) -> None:
    """Check or list. Raises InvalidRequest for a file that isn't right."""
    if args.action == "options":
        _list(args)
    elif args.of == _ROLE:
        config = load(WorkerConfig, ["--config", args.file], {})
        print(f"{args.file} is right: a worker's{' with means' if config.means else ''}")
    elif args.of == _CONTROLLER:
        load(ControllerConfig, ["--config", args.file], {})
        print(f"{args.file} is right: a controller's")
    else:
        check(args.file)


def check(path: str) -> None:
    """Check a fleet's file, and print what it starts. Raises InvalidRequest."""
    file = fleet_file.read(path)
    settings = {"state": ControllerConfig.state, **file.settings}
    settings["model"] = settings.get("model") or EXAMPLE_MODEL
    plan = FleetPlan(**settings, roles=file.roles)
    counts = ", ".join(f"{plan.roles[role].count} {role}{'s' * (plan.roles[role].count > 1)}" for role in ROLE_NAMES)
    print(f"{path} is right: a controller, {counts}")


def options() -> Iterator[tuple[str, str, str, str]]:
    """Key, roles, what it does to bits, and purpose of each option of a role's tables."""
    tables = {"process": means.ProcessMeans, "components.NAME": means.ComponentMeans, "warm_up[]": means.WarmUp}
    for name, cls in tables.items():
        yield from _options(name, cls, "", "")


def _options(path: str, cls: Any, roles: str, bits: str) -> Iterator[tuple[str, str, str, str]]:
    for f in dataclasses.fields(cls):
        about, its_roles, its_bits = (f.metadata[key] for key in ("about", "roles", "bits"))
        its_roles = its_roles if its_roles != "all" else roles or its_roles
        if table := f.metadata.get("table"):
            yield from _options(f"{path}.{f.name}", table, its_roles, its_bits)
        else:
            among = f.metadata["among"]
            accepted = f" ({', '.join(among)})" if among else ""
            yield f"{path}.{f.name}", its_roles, bits or its_bits, about + accepted


def _list(args: argparse.Namespace) -> None:
    rows = list(options())
    if args.json:
        print(json.dumps([dict(zip(("key", "roles", "bits", "about"), row, strict=True)) for row in rows], indent=2))
        return
    show(Table("options", ("key", "roles", "bits", "about"), rows, prose=("about",)))
