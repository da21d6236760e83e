"""`triptych generate`: a prompt becomes a file, on a running fleet, an embedded one, or in this process."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import uuid
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from triptych import config, limits, telemetry
from triptych.environment import ClientAccess
from triptych.errors import InvalidRequest, TriptychError
from triptych.means.process import apply as before_torch
from triptych.media.formats import CODECS, FORMATS, SOUND_FORMATS, THUMBNAILS
from triptych.v1.generation_service_pb2 import WatchJobResponse
from triptych.v1.job_pb2 import JOB_STATE_SUCCEEDED, Job
from triptych_client import input_flags
from triptych_client.client import AsyncClient
from triptych_client.commands.output import print_paths
from triptych_client.commands.session import access, add_access, add_devices, add_fleet, connect, fleet_of, run_async
from triptych_client.fleet_file import FleetFile
from triptych_client.fleet_plan import SETTING_BY_NAME, check_model
from triptych_client.job_states import cut_sentences, is_over, seed_words
from triptych_client.local_fleet import embedded_fleet
from triptych_client.media_files import path_or_url
from triptych_client.progress import Display, display
from triptych_client.request import METADATA, PRIORITIES, GenerationFields, build_request
from triptych_client.result_files import PreviewFile, check_outputs, output_format
from triptych_client.terminal import say

CANCEL_TIMEOUT_S = 5.0
"""After Ctrl-C, how long to wait for an embedded fleet to take a cancellation before it is stopped anyway."""

Result = tuple[str, Sequence[Path]]
"""A closing line, and the files."""

FLEET_SETTINGS = [
    SETTING_BY_NAME[name]
    for name in (
        *("model", "revision", "variant", "device", "dtype", "threads", "mover", "mooncake", "rings", "rdma_device"),
        *("workflows", "arena_bytes", "trace_file", "means", "adapters", "adapter_ids", "adapter_bytes_max"),
    )
]
"""Settings that a fleet for one job can be told."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a request, and of the fleet that makes it."""
    parser.add_argument("prompt", help="what to make; empty where --input gives prompts")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="ends in ." + ", .".join(FORMATS))
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--endpoint", default="", metavar="HOST:PORT", help="a running fleet; without it, one is started"
    )
    where.add_argument("--fused", action="store_true", help="run all three stages in this process")
    add_access(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress, and no line about job and seed")
    request = parser.add_argument_group("request (a flag that is left out takes the model's default)")
    request.add_argument("--negative-prompt", metavar="TEXT")
    for name in ("height", "width", "num-frames", "num-inference-steps", "seed", "num-outputs"):
        request.add_argument(f"--{name}", type=int, metavar="N")
    request.add_argument("--guidance-scale", type=float, metavar="X")
    request.add_argument("--frames-per-second", type=float, metavar="X")
    request.add_argument("--priority", choices=PRIORITIES, help="which of the jobs that wait are begun first (normal)")
    request.add_argument("--deadline-s", type=float, metavar="S", help="give up after so many seconds")
    request.add_argument("--param", action="append", default=[], metavar="NAME=JSON", help="any other input")
    request.add_argument(
        "--media",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a picture, video or sound, its URL, or a folder of frames",
    )
    about = "any input, also inside objects and lists: conditions[0].frames=@start.png, latents=@x.safetensors"
    request.add_argument("--input", action="append", default=[], metavar="NAME=JSON|@FILE", help=about)
    about = "one seed for each result, in place of --seed"
    request.add_argument("--seeds", type=int, nargs="+", metavar="N", help=about)
    about = "an adapter (LoRA) that the fleet has, and its weight (1); see `triptych adapters`"
    request.add_argument("--adapter", action="append", default=[], metavar="NAME=WEIGHT", help=about)
    about = "keep a new FILE.preview.png fresh, every N steps (1)"
    request.add_argument("--preview", type=int, nargs="?", const=1, metavar="N", help=about)
    for role in ("transformer", "decoder"):
        request.add_argument(f"--{role}-rank", type=int, metavar="RANK", help=f"only this {role}")
    _add_output_flags(parser)
    add_fleet(parser)
    config.add_flags(parser, "model and devices (without --endpoint)", FLEET_SETTINGS)
    add_devices(parser)


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("result (which formats a model's results can take, `triptych describe` says)")
    output.add_argument("--codec", choices=CODECS, help="of a video file")
    output.add_argument("--quality", type=int, metavar="1-100", help="of formats that lose something")
    output.add_argument("--audio-format", choices=SOUND_FORMATS, help="sound as a file of its own")
    output.add_argument(
        "--also", dest="also_formats", action="append", choices=tuple(FORMATS), help="the same once more as this"
    )
    output.add_argument("--thumbnail", choices=THUMBNAILS, help="a small picture beside each result")
    output.add_argument("--metadata", choices=METADATA, help="say in the files how they were made; prompt: with it")


def run(args: argparse.Namespace) -> None:
    """Generate, and print the names of the files."""
    path = Path(args.output)
    for name in ("prompt", "negative_prompt"):
        setattr(args, name, _unicode(vars(args)[name]))
    fields = request_fields(args, output_format(path))
    build_request(args.prompt, **fields)  # what can't be sent is refused before anything is started
    check_outputs(path, _result_count(fields))
    preview = PreviewFile(path) if args.preview is not None else None
    if preview is not None:
        preview.check()
    if not args.endpoint:
        wanted = _wanted(args)
        check_model(str(wanted.settings.get("model", "")))
    if args.trace_file:
        args.trace_file = str(Path(args.trace_file).absolute())
    with (
        telemetry.setup("triptych-client", trace_file=args.trace_file or ""),
        display(quiet=args.quiet) as shown,
        preview or contextlib.nullcontext(),
    ):
        job = Shown(shown, preview)
        told, paths = _fused(args, fields, path, job) if args.fused else run_async(_serve(args, fields, path, job))
    if not args.quiet:
        say(told)
    print_paths(paths)


def _result_count(fields: GenerationFields) -> int:
    prompts = (fields.get("inputs") or {}).get("prompt")
    return (fields.get("num_outputs") or 1) * (len(prompts) if isinstance(prompts, list) else 1)


class Shown:
    """The job as far as it is known, and its display."""

    def __init__(self, display: Display, preview: PreviewFile | None) -> None:
        self._preview = preview
        self.say = display.say
        self._update = display.update
        self.job = Job()
        """The newest; without an id before it was accepted."""

    def on_update(self, update: WatchJobResponse) -> None:
        """Show where the job stands."""
        self.job = update.job
        self._update(update.job)
        if self._preview is not None and update.preview_png:
            self._preview.write(update.preview_png)


def request_fields(args: argparse.Namespace, format_: str) -> GenerationFields:
    """The request's fields from the flags. Raises InvalidRequest for flags that can't be read."""
    flags = vars(args)
    fields: dict[str, Any] = {
        name: flags[name] for name in GenerationFields.__annotations__ if flags.get(name) is not None
    }
    fields["output_format"] = format_
    fields["parameters"] = dict(_parameter(_unicode(text)) for text in args.param)
    media: dict[str, list[str | Path]] = {}
    for text in args.media:
        name, file = _pair("media", text, "NAME=FILE")
        media.setdefault(name, []).append(path_or_url(file))
    fields["media"] = media
    fields["inputs"] = input_flags.values_of(map(_unicode, args.input))
    fields["adapters"] = dict(map(_adapter, args.adapter))  # `--adapters` is a setting of the fleet
    if args.preview is not None:
        fields["preview_every_steps"] = args.preview
    if args.deadline_s is not None:
        try:
            fields["deadline"] = timedelta(seconds=args.deadline_s)
        except (ValueError, OverflowError) as error:
            raise InvalidRequest("deadline-s", args.deadline_s, "a number of seconds") from error
    return cast(GenerationFields, fields)


async def _serve(args: argparse.Namespace, fields: GenerationFields, path: Path, shown: Shown) -> Result:
    async with contextlib.AsyncExitStack() as stack:
        endpoint = args.endpoint
        proof = access(args)
        state = None
        if not endpoint:
            proof = ClientAccess()  # an embedded fleet is nobody else's
            shown.say("starting a fleet")
            wanted = _wanted(args)
            embedded = embedded_fleet(notice=shown.say, roles=wanted.roles, **wanted.settings)
            fleet = await stack.enter_async_context(embedded)
            endpoint = fleet.endpoint
            state = fleet.plan.state
        else:
            async with connect(args) as impatient:  # before there is a job, so that a wrong address is told soon
                await impatient.check_reachable()
        client = await stack.enter_async_context(AsyncClient(endpoint, access=proof, proxy=args.proxy))
        request_id = str(uuid.uuid4())
        try:
            generated = await client.generate(
                args.prompt, path, request_id=request_id, on_update=shown.on_update, **fields
            )
        except asyncio.CancelledError:
            await _interrupted(args, client, shown.job, request_id)
            raise
        except (TriptychError, OSError):
            _failed(args, shown.job, state)
            raise
        _say_cuts(args, generated.job)
        return f"job {generated.job.job_id}, {seed_words(generated.job)}", generated.paths


async def _interrupted(args: argparse.Namespace, client: AsyncClient, job: Job, request_id: str) -> None:
    """An embedded fleet's job ends with it; a running fleet's goes on, and its id is said."""
    if args.endpoint and job.job_id:
        say(f"{job.job_id} goes on; see it with: triptych jobs {job.job_id} --endpoint {args.endpoint}")
    elif args.endpoint:
        say(f"it isn't known whether the job was accepted; if so, it has the request id {request_id}")
    elif job.job_id:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(client.cancel_job(job.job_id), CANCEL_TIMEOUT_S)


def _failed(args: argparse.Namespace, job: Job, state: Path | None) -> None:
    """Before the error: which job it is about, and, where it goes on or has a result, how to come by that."""
    if not job.job_id:
        return
    if not args.quiet:
        say(f"job {job.job_id}, {seed_words(job)}")
    if job.state != JOB_STATE_SUCCEEDED and is_over(job):
        return
    if args.endpoint:
        verb = "download" if is_over(job) else "watch"
        say(f"the job isn't lost; go on with: triptych {verb} {job.job_id} --endpoint {args.endpoint}")
    elif is_over(job) and state is not None:
        say(f"the result isn't lost; it is in {state / config.RESULTS_FOLDER / job.job_id}")


def _fused(args: argparse.Namespace, fields: GenerationFields, path: Path, shown: Shown) -> Result:
    shown.say("loading the model")
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, for those who write with them
    wanted = _wanted(args)
    before_torch(wanted.means_of("transformer").process)  # the heaviest role's, as one process has one
    from triptych_client import fused  # takes seconds: it imports torch

    flags = config.as_flags(wanted.settings)
    model = fused.FusedModel.load(config.load(config.WorkerConfig, flags), wanted.roles)
    request = build_request(args.prompt, **fields)
    if not request.HasField("seed") and not request.seeds:
        request.seed = secrets.randbelow(limits.SEED_LIMIT)
    seeds = seed_words(Job(seed=request.seed, seeds=request.seeds))
    try:
        paths = model.generate(request, path, shown.on_update)
    except TriptychError:
        if not args.quiet:
            say(seeds)
        raise
    _say_cuts(args, Job(tokens_cut=model.tokens_cut, lossy=model.lossy))
    return seeds, paths


def _wanted(args: argparse.Namespace) -> FleetFile:
    """The fleet for this one job, as file and flags ask for it."""
    return fleet_of(args, config.given(vars(args), FLEET_SETTINGS), one_job=True)


def _say_cuts(args: argparse.Namespace, job: Job) -> None:
    """What of the prompts had no effect, and what was computed loosely, before the closing line."""
    lossy = [f"made with lossy means, of the {one}" for one in job.lossy]
    for sentence in [] if args.quiet else [*cut_sentences(job), *lossy]:
        say(sentence)


def _unicode(text: str) -> str:
    """Text of the command line, which is UTF-8 even where the locale (`LC_ALL=C`) doesn't say so."""
    try:
        return os.fsencode(text).decode() if text else text
    except UnicodeDecodeError:
        return text  # refused when the request is built


def _parameter(text: str) -> tuple[str, Any]:
    name, value = _pair("param", text, "NAME=JSON")
    try:
        return name, json.loads(value, parse_constant=_no_constant)
    except ValueError as error:
        raise InvalidRequest(f"param {name}", value, "JSON, for example 3, true, [1, 2] or '\"text\"'") from error


def _adapter(text: str) -> tuple[str, float]:
    name, equals, weight = text.partition("=")
    try:
        return name, float(weight) if equals else 1.0
    except ValueError as error:
        raise InvalidRequest(f"adapter {name}", weight, "NAME, or NAME=WEIGHT with a number") from error


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _pair(flag: str, text: str, shape: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise InvalidRequest(flag, text, shape)
    return name, value
