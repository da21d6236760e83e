"""`triptych download`: fetch a result."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from triptych.errors import InvalidRequest, WrongState
from triptych_client.commands.output import print_paths
from triptych_client.commands.session import add_connection, connect, run_async, with_job
from triptych_client.job_states import check_succeeded, is_over, state_name
from triptych_client.result_files import check_format, check_target

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
"""Ids that make the name of a file: a controller may send anything."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the job, the file and the connection."""
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: the job's id and the result's own suffix")
    add_connection(parser)


def run(args: argparse.Namespace) -> None:
    """Download all files of a job and print their names."""
    if args.output:
        check_target(Path(args.output))
    print_paths(run_async(_download(args)))


async def _download(args: argparse.Namespace) -> Sequence[Path]:
    async with connect(args) as client:
        job = check_succeeded(await with_job(client, args.job, client.get_job))
        if not is_over(job):
            raise WrongState(f"{job.job_id} has no result yet; it is {state_name(job.state)}")
        if not args.output and not JOB_ID.fullmatch(job.job_id):
            raise InvalidRequest("output", "", f"a file name, since the id {job.job_id!r} makes none")
        path = Path(args.output or job.job_id)
        check_format(path, [artifact.name for artifact in job.artifacts])
        return await client.download_results(job, path)
