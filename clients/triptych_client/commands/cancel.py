"""`triptych cancel`: ask for jobs to stop."""

from __future__ import annotations

import argparse

from triptych_client.commands.session import connect, run_async
from triptych_client.jobs import state_name


def run(args: argparse.Namespace) -> None:
    """Cancel each job and print where it stands."""
    run_async(_cancel(args))


async def _cancel(args: argparse.Namespace) -> None:
    async with connect(args) as client:
        for job_id in args.jobs:
            job = await client.cancel_job(job_id)
            print(f"{job.job_id} {state_name(job.state)}")
