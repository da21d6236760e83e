"""`triptych plan`: what a model's roles need, which cards hold them, and how many of each keep pace."""

from __future__ import annotations

import argparse
import warnings
from typing import Any

from triptych.errors import InvalidRequest, MissingExtra
from triptych.means.options import DTYPES
from triptych.planning import cards, fleet, quantization
from triptych.planning.fleet import StageSeconds
from triptych.roles import ROLE_NAMES
from triptych.v1.job_pb2 import GenerationRequest
from triptych_client import plan_view
from triptych_client.commands.output import print_json, show
from triptych_client.request import build_request

GPUS_ABOUT = "cards: GB of memory or names, with counts, for example 80,80,24 or h100:8"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the model, the size of a job, the cards, and the form of the answer."""
    parser.add_argument("--model", required=True, help="folder or hub id; its weights needn't be there")
    parser.add_argument("--revision", default="", help="branch, tag or commit on the hub")
    parser.add_argument("--gpus", default="", metavar="CARDS", help=GPUS_ABOUT)
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES, help="of all weights (bfloat16)")
    for role in ROLE_NAMES:
        parser.add_argument(f"--dtype-{role}", default="", choices=DTYPES, help=f"of the {role}'s weights")
    about = f"quantize a role's linear layers: {', '.join(quantization.KINDS)}"
    parser.add_argument("--quantize", action="append", default=[], metavar="ROLE=KIND", help=about)
    for name in ("height", "width", "num-frames"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help="of a job; the model's default if left out")
    parser.add_argument("--weights-only", action="store_true", help="no activations and rooms, which take a dry run")
    times = parser.add_mutually_exclusive_group()
    about = "seconds of one job in encoder, transformer and decoder, for example 0.26,25,0.31"
    times.add_argument("--stage-seconds", default="", metavar="E,T,D", help=about)
    times.add_argument("--measure", action="store_true", help="run a job here, with the weights, to find these seconds")
    parser.add_argument("--device", default="cpu", help="of --measure (cpu)")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def run(args: argparse.Namespace) -> None:
    """Print the plan."""
    given = cards.parse(args.gpus) if args.gpus else []
    kinds = quantization.parse(args.quantize)
    seconds = StageSeconds.parse(args.stage_seconds) if args.stage_seconds else None
    plan = _plan(args, kinds, given, seconds)
    if args.json:
        print_json(plan_view.as_json(plan))
    else:
        show(*plan_view.view(plan))


def _plan(
    args: argparse.Namespace,
    kinds: dict[str, quantization.Kind],
    given: list[cards.Card],
    seconds: StageSeconds | None,
) -> plan_view.Plan:
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, for those who write with them
    try:
        import torch

        from triptych.stages import plan
        from triptych.stages.whole import Whole
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "torch", "serve", "planning") from error
    size = {name: vars(args)[name] for name in ("height", "width", "num_frames")}
    if wrong := [name for name, value in size.items() if value is not None and value < 1]:
        raise InvalidRequest(wrong[0], size[wrong[0]], "a whole number above 0")
    dtypes = {role: getattr(torch, vars(args)[f"dtype_{role}"] or args.dtype) for role in ROLE_NAMES}
    whole = Whole.open(args.model, args.revision, needs_weights=args.measure)
    runs: dict[str, Any] = {}
    note = "no activations and rooms: left out by --weights-only"

    def request() -> GenerationRequest:
        media = plan.stand_ins(whole, args.height or 0, args.width or 0)
        return build_request(plan.LONG_PROMPT, **size, num_inference_steps=plan.STEPS, media=media)

    if not args.weights_only:
        runs, note = plan.dry_runs(whole, request, dtypes)
    if args.measure:
        seconds = plan.stage_seconds(whole, request(), dtypes, args.device)
    sizes = plan.role_sizes(whole, dtypes, kinds, runs)
    best = fleet.plan(given, sizes, seconds) if seconds and given else None
    return plan_view.Plan(sizes, note, given, seconds, best)
