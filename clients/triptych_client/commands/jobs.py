"""`triptych jobs`: list jobs; show one whole; retry dead letters; end jobs that wait for another model."""

from __future__ import annotations

import argparse

from triptych.errors import InvalidRequest, NotFound
from triptych.v1.job_pb2 import JOB_STATE_UNSPECIFIED, Job, JobState
from triptych_client.commands.output import as_dict, print_json, show
from triptych_client.commands.session import add_connection, connect, run_async, with_job
from triptych_client.job_states import state_name
from triptych_client.render import dead_letters_table, job_view, jobs_table
from triptych_client.tables import show_line

ALL = "all"
"""In the place of a job's id: every dead letter."""
STATES = [state_name(state) for state in JobState.values() if state != JOB_STATE_UNSPECIFIED]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add what chooses jobs, and the connection."""
    parser.add_argument("jobs", nargs="*", metavar="JOB", help="show these whole; with --retry, try them again")
    parser.add_argument("--state", action="append", choices=STATES, default=[], help="only these (may be repeated)")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many (default: 50)")
    parser.add_argument(
        "--dead", action="store_true", help="dead letters: what FAILED after too many attempts, and why"
    )
    parser.add_argument("--retry", action="store_true", help="with --dead: a new job for each JOB, or for `all`")
    parser.add_argument(
        "--discard-model", default="", metavar="DIGEST", help="end all jobs that wait for a model that isn't served"
    )
    add_connection(parser, prints_json=True)


def run(args: argparse.Namespace) -> None:
    """Print the newest jobs or dead letters, some jobs whole, or what dead letters became."""
    if args.limit < 1:
        raise InvalidRequest("limit", args.limit, "1 or more")
    if args.discard_model:
        if args.dead or args.jobs or args.retry or args.state:
            raise InvalidRequest("discard-model", args.discard_model, "no other choice of jobs beside it")
        run_async(_discard(args))
        return
    if args.retry and not args.dead:
        raise InvalidRequest("retry", " ".join(args.jobs), "nothing without --dead: only dead letters are tried again")
    if args.state and (args.dead or args.jobs):
        raise InvalidRequest("state", " ".join(args.state), "nothing with --dead, whose jobs are failed, or with a JOB")
    if args.retry:
        if not args.jobs:
            raise InvalidRequest("retry", "", f"ids of dead letters, or {ALL!r}")
        run_async(_retry(args))
        return
    jobs = run_async(_get(args) if args.jobs else _find(args))
    if args.json:
        print_json([as_dict(job) for job in jobs])
    elif args.jobs:
        for job in jobs:
            show(*job_view(job))
    elif args.dead:
        show(dead_letters_table(jobs, f"dead letters on {args.endpoint}"))
    else:
        show(jobs_table(jobs, f"jobs on {args.endpoint}"))


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
        jobs = [await with_job(client, wanted, client.get_job) for wanted in args.jobs]
    for job in jobs:
        if args.dead and not job.dead_letter:
            raise InvalidRequest("job", job.job_id, "a dead letter; `triptych jobs --dead` lists them")
    return jobs


async def _retry(args: argparse.Namespace) -> None:
    """Print each dead letter's id and its new job's."""
    async with connect(args) as client:
        job_ids = args.jobs
        if job_ids == [ALL]:
            job_ids = [job.job_id async for job in client.list_jobs(dead_letters_only=True)]
        for job_id in job_ids:
            job = await with_job(client, job_id, client.retry_job)
            if args.json:
                print_json(as_dict(job))
            else:
                show_line(job.retry_of or job_id, job.job_id)


async def _discard(args: argparse.Namespace) -> None:
    async with connect(args) as client:
        count = await client.discard_jobs(args.discard_model)
    if args.json:
        print_json({"job_count": count})
    elif count:
        print(f"{count} ended")
    if not count:
        raise NotFound(f"no job waits for a model whose digest begins with {args.discard_model}")
