"""`triptych cancel`: ask for jobs to stop."""

from __future__ import annotations

import argparse

from triptych_client.commands.session import add_connection, connect, run_async, with_job
from triptych_client.job_states import state_name
from triptych_client.tables import show_line


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the jobs, and the connection."""
    parser.add_argument("jobs", nargs="+", metavar="JOB")
    add_connection(parser)


def run(args: argparse.Namespace) -> None:
    """Cancel each job and print where it stands."""
    run_async(_cancel(args))


async def _cancel(args: argparse.Namespace) -> None:
    async with connect(args) as client:
        for wanted in args.jobs:
            job = await with_job(client, wanted, client.cancel_job)
            show_line(job.job_id, state_name(job.state))
