"""What commands print: tables for people, lines with tabs in a pipe, JSON for scripts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from triptych_client.tables import Block, is_terminal, lines
from triptych_client.terminal import visible


def show(*blocks: Block) -> None:
    """Print to stdout, as it can be read there."""
    if is_terminal():
        from rich.console import Console  # takes a while, and a pipe doesn't need it

        from triptych_client.drawing import Drawing

        Console(highlight=False).print(Drawing(blocks))
    else:
        for line in lines(blocks):
            print(line)


def as_dict(message: Message) -> dict[str, Any]:
    """A message as JSON has it, with the names of the proto files and all fields."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2))


def print_paths(paths: Iterable[Path]) -> None:
    """Print the names of files: to a pipe as they are, byte by byte."""
    for path in paths:
        if is_terminal() or sys.stdout is None:
            print(visible(path))
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(os.fsencode(path) + b"\n")
