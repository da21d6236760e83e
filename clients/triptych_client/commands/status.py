"""`triptych status`: rings, workers and jobs."""

from __future__ import annotations

import argparse
import asyncio

from rich.console import Console, Group
from rich.live import Live

from triptych_client.client import AsyncClient
from triptych_client.commands.output import as_dict, print_json
from triptych_client.commands.session import connect, run_async
from triptych_client.render import fleet_view, jobs_table

REFRESH_S = 1.0
"""Between two looks; workers report as often."""

JOBS_SHOWN_MAX = 10
"""Newest jobs shown under the fleet."""


def run(args: argparse.Namespace) -> None:
    """Show the fleet once, or until Ctrl-C."""
    run_async(_status(args))


async def _status(args: argparse.Namespace) -> None:
    async with connect(args) as client:
        if args.json:
            print_json(as_dict(await client.get_fleet()))
            return
        console = Console()
        if args.once or not console.is_terminal:
            console.print(await _view(client))
            return
        with Live(await _view(client), console=console, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(REFRESH_S)
                live.update(await _view(client), refresh=True)


async def _view(client: AsyncClient) -> Group:
    fleet = await client.get_fleet()
    jobs = []
    async for job in client.list_jobs(page_size=JOBS_SHOWN_MAX):
        jobs.append(job)
        if len(jobs) == JOBS_SHOWN_MAX:
            break
    return Group(*fleet_view(client.endpoint, fleet), jobs_table(jobs, "newest jobs"))
