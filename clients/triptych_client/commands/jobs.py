"""`triptych jobs`: list jobs."""

from __future__ import annotations

import argparse

from rich.console import Console

from triptych.errors import InvalidRequest
from triptych.v1.job_pb2 import Job, JobState
from triptych_client.commands.output import as_dict, print_json
from triptych_client.commands.session import connect, run_async
from triptych_client.render import jobs_table


def run(args: argparse.Namespace) -> None:
    """Print the newest jobs."""
    if args.limit < 1:
        raise InvalidRequest("limit", args.limit, "1 or more")
    jobs = run_async(_list(args))
    if args.json:
        print_json([as_dict(job) for job in jobs])
    else:
        Console().print(jobs_table(jobs, f"jobs on {args.endpoint}"))


async def _list(args: argparse.Namespace) -> list[Job]:
    states = [JobState.Value(f"JOB_STATE_{name.upper()}") for name in args.state]
    jobs: list[Job] = []
    async with connect(args) as client:
        async for job in client.list_jobs(states, page_size=min(args.limit, 100)):
            jobs.append(job)
            if len(jobs) == args.limit:
                break
    return jobs
