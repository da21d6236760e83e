"""`triptych generate`: a prompt becomes a file, on a running fleet, an embedded one, or in this process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from triptych import telemetry
from triptych.config import ClientAccess
from triptych.errors import InvalidRequest
from triptych.v1.generation_service_pb2 import WatchJobResponse
from triptych_client.client import AsyncClient
from triptych_client.commands.session import access, fleet_settings, role_plan, run_async
from triptych_client.files import check_folder, output_format, write_file
from triptych_client.fleet import check_model, embedded_fleet, threads_default
from triptych_client.progress import Display, display
from triptych_client.request import GenerationFields, build_request
from triptych_client.voice import say

CANCEL_TIMEOUT_S = 5.0
"""After Ctrl-C, how long to wait for an embedded fleet to take a cancellation before it is stopped anyway."""

FIELDS = (
    *("negative_prompt", "height", "width", "num_frames", "num_inference_steps", "guidance_scale", "seed"),
    *("num_outputs", "frames_per_second", "transformer_rank", "decoder_rank", "priority"),
)
"""Flags that are fields of the request by the same name."""


def run(args: argparse.Namespace) -> None:
    """Generate, and print the names of the files."""
    path = Path(args.output)
    fields = request_fields(args, output_format(path))
    check_folder(path)
    build_request(args.prompt, **fields)  # what can't be sent is refused before anything is started
    if not args.endpoint:
        check_model(args.model)
    if args.trace_file:
        args.trace_file = str(Path(args.trace_file).absolute())
    with telemetry.setup("triptych-client", trace_file=args.trace_file), display(quiet=args.quiet) as shown:
        run_it = _fused if args.fused else _served
        paths = run_it(args, fields, path, shown)
    for written in paths:
        print(written)


def request_fields(args: argparse.Namespace, format_: str) -> GenerationFields:
    """The request's fields from the flags. Raises InvalidRequest for flags that can't be read."""
    flags = vars(args)
    fields: dict[str, Any] = {name: flags[name] for name in FIELDS if flags[name] is not None}
    fields["output_format"] = format_
    fields["parameters"] = dict(_parameter(text) for text in args.param)
    media: dict[str, list[Path]] = {}
    for text in args.media:
        name, file = _pair("media", text, "NAME=FILE")
        media.setdefault(name, []).append(Path(file))
    fields["media"] = media
    if args.preview is not None:
        fields["preview_every_steps"] = args.preview
    if args.deadline_s is not None:
        try:
            fields["deadline"] = timedelta(seconds=args.deadline_s)
        except (ValueError, OverflowError) as error:
            raise InvalidRequest("deadline-s", args.deadline_s, "a number of seconds") from error
    return cast(GenerationFields, fields)


def _served(args: argparse.Namespace, fields: GenerationFields, path: Path, shown: Display) -> Sequence[Path]:
    return run_async(_serve(args, fields, path, shown))


async def _serve(args: argparse.Namespace, fields: GenerationFields, path: Path, shown: Display) -> Sequence[Path]:
    async with contextlib.AsyncExitStack() as stack:
        endpoint, proof = args.endpoint, access(args)
        if not endpoint:
            proof = ClientAccess()  # an embedded fleet is nobody else's
            shown.say("starting a fleet")
            fleet = await stack.enter_async_context(embedded_fleet(args.model, shown.say, **fleet_settings(args)))
            endpoint = fleet.endpoint
        client = await stack.enter_async_context(AsyncClient(endpoint, access=proof))
        job_ids: list[str] = []
        try:
            generated = await client.generate(
                args.prompt, path, on_update=_watcher(args, path, shown, job_ids), **fields
            )
        except asyncio.CancelledError:
            await _interrupted(args, client, job_ids)
            raise
        finally:
            preview_path(path).unlink(missing_ok=True)
        return generated.paths


def _watcher(
    args: argparse.Namespace, path: Path, shown: Display, job_ids: list[str]
) -> Callable[[WatchJobResponse], None]:
    def on_update(update: WatchJobResponse) -> None:
        job_ids[:] = [update.job.job_id]
        shown.update(update.job)
        if args.preview is not None and update.preview_png:
            write_file(preview_path(path), update.preview_png)

    return on_update


async def _interrupted(args: argparse.Namespace, client: AsyncClient, job_ids: Sequence[str]) -> None:
    """An embedded fleet's job ends with it; a running fleet's goes on, and its id is said."""
    for job_id in job_ids:
        if args.endpoint:
            say(f"{job_id} goes on; see it with: triptych jobs --endpoint {args.endpoint}")
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.cancel_job(job_id), CANCEL_TIMEOUT_S)


def _fused(args: argparse.Namespace, fields: GenerationFields, path: Path, shown: Display) -> Sequence[Path]:
    shown.say("loading the model")
    from triptych_client import fused  # takes seconds: it imports torch

    model = fused.FusedModel.load(
        args.model,
        args.revision,
        {role: role_plan(args, role) for role in fused.ROLE_NAMES},
        args.threads or threads_default(),
    )

    def on_update(update: WatchJobResponse) -> None:
        shown.update(update.job)
        if update.preview_png:
            write_file(preview_path(path), update.preview_png)

    try:
        return model.generate(build_request(args.prompt, **fields), path, on_update)
    finally:
        preview_path(path).unlink(missing_ok=True)


def preview_path(path: Path) -> Path:
    """Where the latest preview of a result is kept while it is made."""
    return path.with_name(f"{path.stem}.preview.png")


def _parameter(text: str) -> tuple[str, Any]:
    name, value = _pair("param", text, "NAME=JSON")
    try:
        return name, json.loads(value, parse_constant=_no_constant)
    except ValueError as error:
        raise InvalidRequest(f"param {name}", value, "JSON, for example 3, true, [1, 2] or '\"text\"'") from error


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _pair(flag: str, text: str, shape: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InvalidRequest(flag, text, shape)
    return name, value
