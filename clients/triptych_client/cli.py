"""The `triptych` command: its flags, and what its errors look like.

Commands live in `triptych_client.commands` and are imported when they are run, so that `triptych --help` is quick.
Exit codes: 0, 1 for a job or connection that failed, 2 for bad input or configuration, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from triptych_client.voice import say

ENDPOINT_DEFAULT = "127.0.0.1:7070"
"""Where `triptych up` serves unless told otherwise."""

EXIT_FAILED, EXIT_CONFIGURATION, EXIT_INTERRUPTED = 1, 2, 130

ROLES = ("encoder", "transformer", "decoder")

DTYPES = ("float32", "bfloat16", "float16")

MOVERS = ("local", "mooncake", "rpc")

RINGS = ("auto", "verbs", "rpc")

MOONCAKE = ("auto", "rdma", "tcp")

PRIORITIES = ("high", "normal", "low")

SCOPES = ("submit", "read", "admin", "encoder", "transformer", "decoder")

STATES = (
    *("queued", "encoding", "encoded", "denoising", "denoised", "decoding"),
    *("succeeded", "failed", "cancelled", "expired"),
)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit as for any bad input."""
        self.exit(EXIT_CONFIGURATION, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args(argv)
    try:
        return _run(args)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _run(args: argparse.Namespace) -> int:
    from triptych.errors import InvalidRequest, MissingExtra, ModelInvalid, TriptychError

    try:
        importlib.import_module(f"triptych_client.commands.{args.module}").run(args)
        return 0
    except (InvalidRequest, ModelInvalid, MissingExtra) as error:
        return _fail(error, EXIT_CONFIGURATION)
    except (TriptychError, OSError) as error:
        return _fail(error, EXIT_FAILED)


def _fail(error: Exception, code: int) -> int:
    say(f"triptych: {error}")
    return code


def build_parser() -> argparse.ArgumentParser:
    """All commands and flags."""
    parser = Parser(prog="triptych", description="Diffusion models as three services: encoder, transformer, decoder.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_up(commands.add_parser("up", help="start a fleet on this machine and keep it running"))
    _add_generate(commands.add_parser("generate", help="make a picture or video from a prompt"))
    status = commands.add_parser("status", help="show rings, workers and jobs, live")
    status.add_argument("--once", action="store_true", help="show them once")
    _add_endpoint(status, "status", json=True)
    _add_jobs(commands.add_parser("jobs", help="list jobs, newest first; show and retry dead letters"))
    cancel = commands.add_parser("cancel", help="ask for jobs to stop")
    cancel.add_argument("jobs", nargs="+", metavar="JOB")
    _add_endpoint(cancel, "cancel", json=False)
    download = commands.add_parser("download", help="fetch a job's result")
    download.add_argument("job", metavar="JOB")
    download.add_argument("-o", "--output", metavar="FILE", help="default: the job's id and the result's own suffix")
    _add_endpoint(download, "download", json=False)
    describe = commands.add_parser("describe", help="show what the loaded model accepts")
    _add_endpoint(describe, "describe", json=True)
    doctor = commands.add_parser("doctor", help="show what this machine has for Triptych, and what to install")
    doctor.add_argument("--json", action="store_true", help="print JSON, for scripts")
    doctor.set_defaults(module="doctor")
    backup = commands.add_parser("backup", help="copy a controller's journal and results while it runs")
    backup.add_argument("target", metavar="FOLDER", help="the copy; must not exist yet")
    backup.add_argument("--state", default=".triptych", metavar="DIR", help="what to copy (default: .triptych)")
    backup.set_defaults(module="backup")
    _add_certs(commands.add_parser("certs", help="make a small certificate authority and the roles' certificates"))
    _add_tokens(commands.add_parser("tokens", help="give clients tokens, list them, take them away"))
    trace = commands.add_parser("trace", help="draw a job's trace as a waterfall")
    trace.add_argument("job", metavar="JOB", help="job id or trace id")
    trace.add_argument("--trace-file", required=True, metavar="FILE", help="what the fleet's --trace-file wrote")
    trace.set_defaults(module="trace")
    return parser


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("jobs", nargs="*", metavar="JOB", help="with --dead: show these whole, or retry them")
    parser.add_argument("--state", action="append", choices=STATES, default=[], help="only these (may be repeated)")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many (default: 50)")
    parser.add_argument(
        "--dead", action="store_true", help="dead letters: what FAILED after too many attempts, and why"
    )
    parser.add_argument("--retry", action="store_true", help="with --dead: a new job for each JOB, or for `all`")
    parser.add_argument(
        "--discard-model", default="", metavar="DIGEST", help="end all jobs that wait for a model that isn't served"
    )
    _add_endpoint(parser, "jobs", json=True)


def _add_endpoint(parser: argparse.ArgumentParser, module: str, *, json: bool) -> None:
    parser.add_argument("--endpoint", default=ENDPOINT_DEFAULT, metavar="HOST:PORT", help="default: %(default)s")
    _add_access(parser)
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    parser.set_defaults(module=module)


def _add_access(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("proof of who calls (TRIPTYCH_TLS, TRIPTYCH_TOKEN_FILE, TRIPTYCH_TOKEN)")
    group.add_argument("--tls", default="", metavar="DIR", help="folder of ca.crt and, for a role, tls.crt and tls.key")
    group.add_argument("--token-file", default="", metavar="FILE", help="file that holds a token")


def _add_certs(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(module="certs")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, about in (
        ("init", "make an authority and a certificate for each role"),
        ("renew", "make new certificates by the same authority; running processes take them up"),
    ):
        one = actions.add_parser(action, help=about)
        one.add_argument("folder", metavar="DIR")
        one.add_argument(
            "--host", action="append", default=[], metavar="NAME", help="DNS name or IP of a machine (may be repeated)"
        )
        one.add_argument("--days", type=int, default=365, metavar="N", help="valid for so long (default: 365)")


def _add_tokens(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(module="tokens")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="make a token and print it, once")
    add.add_argument("--scope", action="append", required=True, choices=SCOPES, help="what it is good for (repeat)")
    add.add_argument("--jobs-max", type=int, default=0, metavar="N", help="unfinished jobs at once (default: no limit)")
    remove = actions.add_parser("remove", help="take a token away, at once")
    for one in (add, remove):
        one.add_argument("name", metavar="NAME")
    for one in (add, remove, actions.add_parser("list", help="list names, scopes and limits")):
        one.add_argument("--tokens", default="tokens.toml", metavar="FILE", help="default: tokens.toml")


def _add_up(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(module="up")
    for role in ROLES:
        parser.add_argument(f"--{role}s", type=int, default=1, metavar="N", help=f"{role} processes (default: 1)")
    parser.add_argument(
        "--state", default=".triptych", metavar="DIR", help="journal, results, logs (default: .triptych)"
    )
    parser.add_argument("--endpoint", default=ENDPOINT_DEFAULT, metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument(
        "--result-url", default="", metavar="URL", help="fsspec URL for results (default: in the state)"
    )
    parser.add_argument("--tls", default="", metavar="DIR", help="mutual TLS; DIR is of `triptych certs init`")
    parser.add_argument("--tokens", default="", metavar="FILE", help="clients' tokens, of `triptych tokens add`")
    parser.add_argument(
        "--client-endpoint", default="", metavar="HOST:PORT", help="TLS for clients with a token and no certificate"
    )
    parser.add_argument(
        "--metrics-port", type=int, default=0, metavar="P", help="Prometheus: controller P, workers P+1…"
    )
    parser.add_argument(
        "--drain-timeout-s", type=float, default=600.0, metavar="S", help="after Ctrl-C, let jobs run so long (600)"
    )
    _add_fleet(parser, model_required=True)


def _add_fleet(parser: argparse.ArgumentParser, *, model_required: bool) -> None:
    group = parser.add_argument_group("model and devices")
    group.add_argument("--model", required=model_required, default="", metavar="M", help="folder or hub id")
    group.add_argument("--revision", default="", metavar="R", help="revision of the hub's repository")
    group.add_argument("--device", default="cpu", metavar="D", help="torch device of all roles (default: cpu)")
    group.add_argument("--dtype", default="float32", choices=DTYPES, help="of all roles (default: float32)")
    for role in ROLES:
        group.add_argument(f"--device-{role}", metavar="D", help=f"device of the {role}")
        group.add_argument(f"--dtype-{role}", choices=DTYPES, help=f"dtype of the {role}")
    group.add_argument(
        "--threads", type=int, default=0, metavar="N", help="torch threads a worker (default: cores shared)"
    )
    group.add_argument("--mover", default="", choices=MOVERS, help="force one way for tensors to move")
    group.add_argument("--mooncake", default="", choices=MOONCAKE, help="Mooncake's protocol (default: auto)")
    group.add_argument("--rings", default="", choices=RINGS, help="way to the queues (default: auto)")
    group.add_argument("--rdma-device", default="", metavar="D", help="DEVICE[:PORT[:GID_INDEX]] (default: the best)")
    group.add_argument("--arena-bytes", type=int, default=0, metavar="N", help="size of each worker's arena")
    group.add_argument("--trace-file", default="", metavar="FILE", help="append spans here, as OTLP JSON lines")


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(module="generate")
    parser.add_argument("prompt", help="what to make")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="ends in .mp4, .gif, .png or .npy")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--endpoint", default="", metavar="HOST:PORT", help="a running fleet; without it, one is started"
    )
    where.add_argument("--fused", action="store_true", help="run all three stages in this process")
    _add_access(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress")
    request = parser.add_argument_group("request (what is left out is the model's default)")
    request.add_argument("--negative-prompt", metavar="TEXT")
    for name in ("height", "width", "num-frames", "num-inference-steps", "seed", "num-outputs"):
        request.add_argument(f"--{name}", type=int, metavar="N")
    request.add_argument("--guidance-scale", type=float, metavar="X")
    request.add_argument("--frames-per-second", type=float, metavar="X")
    request.add_argument("--priority", choices=PRIORITIES, help="which jobs that wait are begun first (normal)")
    request.add_argument("--deadline-s", type=float, metavar="S", help="give up after so many seconds")
    request.add_argument("--param", action="append", default=[], metavar="NAME=JSON", help="any other input")
    request.add_argument("--media", action="append", default=[], metavar="NAME=FILE", help="an image or video")
    request.add_argument(
        "--preview", type=int, nargs="?", const=1, metavar="N", help="keep FILE.preview.png fresh, every N steps (1)"
    )
    for role in ("transformer", "decoder"):
        request.add_argument(f"--{role}-rank", type=int, metavar="RANK", help=f"only this {role}")
    _add_fleet(parser, model_required=False)


if __name__ == "__main__":
    sys.exit(main())
