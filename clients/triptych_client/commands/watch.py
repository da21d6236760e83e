"""`triptych watch`: follow a job to its end."""

from __future__ import annotations

import argparse

from triptych.v1.job_pb2 import Job
from triptych_client.commands.session import add_connection, connect, run_async, with_job
from triptych_client.job_states import check_succeeded, state_name
from triptych_client.progress import Display, display
from triptych_client.tables import show_line


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the job and the connection."""
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    add_connection(parser)


def run(args: argparse.Namespace) -> None:
    """Show the job's progress, then its id and how it ended. Raises as `check_succeeded`."""
    with display(quiet=args.quiet) as shown:
        job = run_async(_watch(args, shown))
    show_line(check_succeeded(job).job_id, state_name(job.state))


async def _watch(args: argparse.Namespace, shown: Display) -> Job:
    async with connect(args) as client:
        job = await with_job(client, args.job, client.get_job)
        async for update in client.watch_job(job.job_id):
            job = update.job
            shown.update(job)
        return job
