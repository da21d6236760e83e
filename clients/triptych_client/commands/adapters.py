"""`triptych adapters`: which adapters (LoRA) a fleet has, and which it can't use."""

from __future__ import annotations

import argparse

from triptych.limits import bytes_text
from triptych.model.description import DIGEST_CHARS
from triptych_client.commands.output import as_dict, print_json, show
from triptych_client.commands.session import add_connection, connect, run_async
from triptych_client.tables import Table
from triptych_client.terminal import say


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the connection."""
    add_connection(parser, prints_json=True)


def run(args: argparse.Namespace) -> None:
    """Print the adapters' names, what they touch, and why one can't be used."""
    run_async(_list(args))


async def _list(args: argparse.Namespace) -> None:
    async with connect(args) as client:
        adapters = (await client.describe_model()).adapters
    if args.json:
        print_json([as_dict(one) for one in adapters])
        return
    if not adapters:
        say("this fleet has no adapters; see `triptych up --adapters FOLDER`")
    rows = []
    for one in adapters:
        left_out = f"{one.layers_left_out} of its layers aren't in this model" if one.layers_left_out else ""
        said = f"can't be used: {one.unusable}" if one.unusable else left_out
        touched = ", ".join(one.components)
        rows.append((one.name, touched, bytes_text(one.size_bytes), one.digest[:DIGEST_CHARS], said))
    if rows:
        show(Table("adapters", ("name", "touches", "size", "digest", "note"), rows, prose=("note",)))
