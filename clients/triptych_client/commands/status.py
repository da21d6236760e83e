"""`triptych status`: rings, workers and jobs."""

from __future__ import annotations

import argparse
import asyncio

from triptych_client.client import AsyncClient
from triptych_client.commands.output import as_dict, print_json, show
from triptych_client.commands.session import add_connection, connect, run_async
from triptych_client.render import fleet_view, jobs_table
from triptych_client.tables import View, is_terminal

REFRESH_S = 1.0
"""Between two looks; workers report as often."""

JOBS_SHOWN_MAX = 10
"""Newest jobs shown under the fleet."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the connection."""
    parser.add_argument("--once", action="store_true", help="show them once")
    add_connection(parser, prints_json=True)


def run(args: argparse.Namespace) -> None:
    """Show the fleet once, or until Ctrl-C."""
    run_async(_status(args))


async def _status(args: argparse.Namespace) -> None:
    async with connect(args) as client:
        if args.json:
            print_json(as_dict(await client.get_fleet()))
            return
        if args.once or not is_terminal():
            show(*await _view(client))
        else:
            await _stay(client)


async def _stay(client: AsyncClient) -> None:
    from rich.console import Console
    from rich.live import Live

    from triptych_client.drawing import Drawing

    console = Console(highlight=False)
    with Live(Drawing(await _view(client)), console=console, auto_refresh=False) as live:
        while True:
            await asyncio.sleep(REFRESH_S)
            live.update(Drawing(await _view(client)), refresh=True)


async def _view(client: AsyncClient) -> View:
    fleet = await client.get_fleet()
    jobs = []
    async for job in client.list_jobs(page_size=JOBS_SHOWN_MAX):
        jobs.append(job)
        if len(jobs) == JOBS_SHOWN_MAX:
            break
    return (*fleet_view(client.endpoint, fleet), jobs_table(jobs, "newest jobs"))
