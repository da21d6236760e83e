"""What a document has its reader type: indented blocks, and those that are fenced as `python` or `sh`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ELSEWHERE_WHOLE = {
    "clients/web/README.md",  # Node.js, and
    "docs/clients.md",  # Node.js and Go: tests/mesh/test_languages.py runs its commands
    "docs/mesh.md",
    "docs/rest.md",  # Envoy: tests/mesh
    "deploy/envoy/README.md",
    "docs/standby.md",  # several hosts: tests/standby does what its commands do
    "deploy/observability/README.md",  # a container engine
}
"""Documents whose commands need more than a machine with a fleet."""
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        ROOT / "README.md",
        ROOT / "SECURITY.md",
        *(ROOT / "clients").rglob("*.md"),
        *(ROOT / "deploy").rglob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
    )
    if path.relative_to(ROOT).as_posix() not in ELSEWHERE_WHOLE
)
INDENT = "    "
_FENCE = re.compile(r"```(\w*)\s*$")
_LIST = re.compile(r"\s*([*-]|\d+\.) ")


class Command(NamedTuple):
    """One thing to type: a shell's line, or a whole Python program."""

    line: int
    text: str
    is_python: bool = False


def commands(text: str) -> list[Command]:
    """The commands of a document, in its order. A line that ends in a backslash goes on with the next."""
    found: list[Command] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if fence:
            end = lines.index("```", number + 1)
            block = lines[number + 1 : end]
            if fence[1] == "python":
                found.append(Command(number + 1, "\n".join(block), is_python=True))
            elif fence[1] in ("sh", "bash", "console"):
                found += _shell(block, number + 2)
            number = end + 1
        elif lines[number].startswith(INDENT) and not _is_in_list(lines, number):
            end = number
            while end < len(lines) and lines[end].startswith(INDENT):
                end += 1
            found += _shell(lines[number:end], number + 1)
            number = end
        else:
            number += 1
    return found


def _is_in_list(lines: list[str], number: int) -> bool:
    """Whether an indented line goes on with an item of a list."""
    above = next((line for line in reversed(lines[:number]) if not line.startswith(INDENT)), "")
    return bool(above) and (above.startswith(" ") or bool(_LIST.match(above)))


def _shell(block: list[str], first: int) -> list[Command]:
    found: list[Command] = []
    whole, start = "", first
    for number, line in enumerate(block, first):
        whole += line.strip()
        if whole.endswith("\\"):
            whole = whole.removesuffix("\\")
            continue
        if whole:
            found.append(Command(start, whole))
        whole, start = "", number + 1
    return found
