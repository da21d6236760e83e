"""The instructions of a Containerfile, as far as ours uses them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

KNOWN = {"FROM", "ARG", "RUN", "COPY", "ENV", "USER", "WORKDIR", "VOLUME", "EXPOSE", "HEALTHCHECK", "CMD"}
_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass
class Stage:
    """What lies between two FROMs, with its variables filled in."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)
    """ENV, WORKDIR, COPY and RUN, in their order."""
    environment: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    folder: str = "/"
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)


def parse(text: str, build_args: dict[str, str]) -> list[Stage]:
    """The stages. Raises ValueError for an instruction that isn't known here."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    stages: list[Stage] = []
    given: dict[str, str] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        word, _, rest = line.strip().partition(" ")
        if word not in KNOWN:
            raise ValueError(f"{word}: not one of {sorted(KNOWN)}")
        rest = _VARIABLE.sub(lambda match: given[match[1]], rest.strip())
        if word == "ARG":
            name, _, default = rest.partition("=")
            given[name] = build_args.get(name, default)
        elif word == "FROM":
            base, *name_words = rest.split()
            stages.append(Stage(base, name_words[-1] if name_words else ""))
        else:
            _take(stages[-1], word, rest)
    return stages


def _take(stage: Stage, word: str, rest: str) -> None:
    if word == "ENV":
        name, _, value = rest.partition("=")
        stage.environment[name] = value
        stage.steps.append((word, rest))
    elif word == "USER":
        stage.user = rest
    elif word == "CMD":
        stage.command = json.loads(rest)
    elif word == "HEALTHCHECK":
        stage.health = json.loads(rest.partition("CMD ")[2])
    elif word in ("WORKDIR", "COPY", "RUN"):
        stage.folder = rest if word == "WORKDIR" else stage.folder
        stage.steps.append((word, rest))
