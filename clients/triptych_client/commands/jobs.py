"""`triptych jobs`: list jobs; show dead letters and try them anew; end what waits for a model of the past."""

from __future__ import annotations

import argparse

from rich.console import Console

from triptych.errors import InvalidRequest
from triptych.v1.job_pb2 import Job, JobState
from triptych_client.commands.output import as_dict, print_json
from triptych_client.commands.session import connect, run_async
from triptych_client.render import dead_letter_view, dead_letters_table, jobs_table

ALL = "all"
"""In the place of a job's id: every dead letter."""


def run(args: argparse.Namespace) -> None:
    """Print the newest jobs, or dead letters, or what they became."""
    if args.limit < 1:
        raise InvalidRequest("limit", args.limit, "1 or more")
    if args.discard_model:
        if args.dead or args.jobs or args.retry or args.state:
            raise InvalidRequest("discard-model", args.discard_model, "no other choice of jobs beside it")
        run_async(_discard(args))
        return
    if not args.dead and (args.jobs or args.retry):
        raise InvalidRequest("jobs", " ".join(args.jobs) or "--retry", "no job and no --retry, unless with --dead")
    if args.dead and args.state:
        raise InvalidRequest("state", " ".join(args.state), "nothing with --dead: dead letters are failed")
    if args.retry:
        if not args.jobs:
            raise InvalidRequest("retry", "", f"ids of dead letters, or {ALL!r}")
        run_async(_retry(args))
    elif args.jobs:
        _show(args, run_async(_get(args)))
    else:
        _list(args, run_async(_find(args)))


def _list(args: argparse.Namespace, jobs: list[Job]) -> None:
    if args.json:
        print_json([as_dict(job) for job in jobs])
    elif args.dead:
        Console().print(dead_letters_table(jobs, f"dead letters on {args.endpoint}"))
    else:
        Console().print(jobs_table(jobs, f"jobs on {args.endpoint}"))


def _show(args: argparse.Namespace, jobs: list[Job]) -> None:
    if args.json:
        print_json([as_dict(job) for job in jobs])
        return
    for job in jobs:
        Console().print(*dead_letter_view(job), sep="\n")


async def _find(args: argparse.Namespace) -> list[Job]:
    states = [JobState.Value(f"JOB_STATE_{name.upper()}") for name in args.state]
    jobs: list[Job] = []
    async with connect(args) as client:
        async for job in client.list_jobs(states, page_size=min(args.limit, 100), dead_letters_only=args.dead):
            jobs.append(job)
            if len(jobs) == args.limit:
                break
    return jobs


async def _get(args: argparse.Namespace) -> list[Job]:
    async with connect(args) as client:
        jobs = [await client.get_job(job_id) for job_id in args.jobs]
    for job in jobs:
        if not job.dead_letter:
            raise InvalidRequest("job", job.job_id, "a dead letter; `triptych jobs --dead` lists them")
    return jobs


async def _retry(args: argparse.Namespace) -> None:
    """Print each dead letter's id and its new job's."""
    async with connect(args) as client:
        job_ids = args.jobs
        if job_ids == [ALL]:
            job_ids = [job.job_id async for job in client.list_jobs(dead_letters_only=True)]
        for job_id in job_ids:
            job = await client.retry_job(job_id)
            if args.json:
                print_json(as_dict(job))
            else:
                print(f"{job_id} {job.job_id}", flush=True)


async def _discard(args: argparse.Namespace) -> None:
    async with connect(args) as client:
        count = await client.discard_jobs(args.discard_model)
    if args.json:
        print_json({"job_count": count})
    else:
        print(f"{count} ended")
