"""`triptych describe`: what the loaded model accepts."""

from __future__ import annotations

import argparse

from triptych_client.commands.output import as_dict, print_json, show
from triptych_client.commands.session import add_connection, connect, run_async
from triptych_client.render import model_view


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the connection."""
    add_connection(parser, prints_json=True)


def run(args: argparse.Namespace) -> None:
    """Print the model's inputs and components."""
    run_async(_describe(args))


async def _describe(args: argparse.Namespace) -> None:
    async with connect(args) as client:
        model = await client.describe_model()
    if args.json:
        print_json(as_dict(model))
    else:
        show(*model_view(model))
