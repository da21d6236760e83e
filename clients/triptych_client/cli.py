"""The `triptych` command: its subcommands, and what its errors look like.

A subcommand is a module of `triptych_client.commands` with `add_flags(parser)` and `run(args)`. It is imported only
when it is named, so that `triptych --help` is quick. Exit codes: 0, 1 for a job or connection that failed, 2 for bad
input or configuration, 130 after Ctrl-C, 141 when the reader of the output is gone (as after a signal SIGPIPE).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from triptych.errors import (
    EXIT_CONFIGURATION,
    EXIT_FAILED,
    InvalidRequest,
    MissingExtra,
    ModelInvalid,
    TriptychError,
    Unreachable,
)
from triptych_client.terminal import prepare_streams, say, visible

EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141

COMMANDS = {
    "up": (
        "start a fleet on this machine and keep it running",
        "triptych up --model examples/shapes/model --trace-file spans.jsonl",
    ),
    "generate": (
        "make a picture or video from a prompt",
        'triptych generate "a big red circle moving right" -o circle.mp4 --endpoint 127.0.0.1:7070',
    ),
    "status": ("show rings, workers and jobs, live", "triptych status --once"),
    "jobs": (
        "list jobs, newest first; show one whole; retry dead letters",
        "triptych jobs --state succeeded --limit 5",
    ),
    "cancel": ("ask for jobs to stop", "triptych cancel JOB"),
    "download": ("fetch a job's result", "triptych download JOB -o result.mp4"),
    "watch": ("follow a job to its end", "triptych watch JOB"),
    "health": ("say whether a process serves, for probes", "triptych health --endpoint 127.0.0.1:7070"),
    "describe": ("show what the loaded model accepts", "triptych describe"),
    "adapters": ("list the adapters (LoRA) that jobs may use", "triptych adapters"),
    "config": ("check a fleet's file, and list what it can say", "triptych config check deploy/fleet.toml"),
    "doctor": ("show what this machine has for Triptych, and what to install", "triptych doctor"),
    "plan": (
        "say what a model's roles need, which cards hold them, and how many of each keep pace",
        "triptych plan --model examples/shapes/model --gpus 80,24",
    ),
    "backup": ("copy a controller's journal and results while it runs", "triptych backup my-copy"),
    "certs": (
        "make a small certificate authority and the roles' certificates",
        "triptych certs init my-certs --host localhost",
    ),
    "tokens": (
        "give clients tokens, list them, take them away",
        "triptych tokens add alice --scope submit --scope read -o alice.token",
    ),
    "trace": ("draw a job's trace as a waterfall", "triptych trace JOB --trace-file spans.jsonl"),
}
"""What each command does, and an example. JOB stands for a job's id."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence. Help ends with an example."""

    def __init__(self, *, example: str = "", **settings: Any) -> None:
        settings["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(epilog=f"example:\n  {example}" if example else None, **settings)

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit as for any bad input."""
        say(f"{self.prog}: {visible(message)}")
        self.exit(EXIT_CONFIGURATION)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    prepare_streams()
    code = 0
    try:
        try:
            code = _run(sys.argv[1:] if argv is None else argv)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # while an error can still be told
        return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return EXIT_UNREAD
    except OSError as error:
        _forget_stdout()
        return code or _fail(error, EXIT_FAILED)  # a command that failed has told why: mostly this same error


def _forget_stdout() -> None:
    """What can't be written would be tried again, and complained about, when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _run(argv: Sequence[str]) -> int:
    try:
        args = build_parser(argv).parse_args(argv)
        _module(args.command).run(args)
        return 0
    except (InvalidRequest, ModelInvalid, MissingExtra) as error:
        return _fail(error, EXIT_CONFIGURATION)
    except BrokenPipeError:
        raise
    except Unreachable as error:
        return _fail(Unreachable(f"{error}; `triptych up` starts a fleet, --endpoint says where one is"), EXIT_FAILED)
    except (TriptychError, OSError) as error:
        return _fail(error, EXIT_FAILED)


def _fail(error: Exception, code: int) -> int:
    say(f"triptych: {error}")
    return code


def build_parser(argv: Sequence[str]) -> Parser:
    """All commands, and the flags of the one that `argv` names. Raises MissingExtra where it can't be loaded."""
    parser = Parser(
        prog="triptych",
        description="Diffusion models as three services: encoder, transformer, decoder.",
        example="triptych up --model examples/shapes/model",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (about, example) in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about, example=example)
        if [name] == list(argv[:1]):
            _module(name).add_flags(command)
    return parser


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"triptych_client.commands.{command}")


if __name__ == "__main__":
    sys.exit(main())
