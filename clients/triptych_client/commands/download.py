"""`triptych download`: fetch a result."""

from __future__ import annotations

import argparse
from pathlib import Path

from triptych.errors import WrongState
from triptych_client.commands.session import connect, run_async
from triptych_client.files import check_folder
from triptych_client.jobs import check_succeeded, is_over, state_name


def run(args: argparse.Namespace) -> None:
    """Download all files of a job and print their names."""
    run_async(_download(args))


async def _download(args: argparse.Namespace) -> None:
    async with connect(args) as client:
        job = check_succeeded(await client.get_job(args.job))
        if not is_over(job):
            raise WrongState(f"{job.job_id} has no result yet; it is {state_name(job.state)}")
        path = Path(args.output or job.job_id)
        check_folder(path)
        for written in await client.download_results(job, path):
            print(written)
