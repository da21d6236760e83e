"""A `ModelDescription`, parsed once: its inputs by name, and what a request gets that leaves one of them out.

Sentences call a model by its name and by the beginning of its digest, as the command takes it.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from triptych.v1 import model_pb2

NAME_CHARS_MAX = 128
"""Longest name that names are compared with: no input's is half as long, and the comparison takes time."""

MEDIA_KINDS = (model_pb2.INPUT_KIND_IMAGE, model_pb2.INPUT_KIND_VIDEO, model_pb2.INPUT_KIND_AUDIO)

OUTPUT_COUNT_INPUT = re.compile(r"num_\w+_per_prompt")
"""Name of the input that `num_outputs` sets, for example `num_videos_per_prompt`."""

DIGEST_CHARS = 12
"""Digits of a digest that are shown, and the fewest by which a model can be named: 48 bits, so no two models meet."""
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


class Given(NamedTuple):
    """What a request gives, by the input's name, and the request's field that says it."""

    values: dict[str, Any]
    """Plain Python values. Files are messages, `Media` or `TensorFile`, until they are looked at."""
    places: dict[str, str]
    """For example `parameters.strength`."""


class Description:
    """What a model takes."""

    def __init__(self, message: model_pb2.ModelDescription) -> None:
        self.message = message
        self.inputs = {described.name: described for described in message.inputs}
        self.recommended: dict[str, Any] = json.loads(message.defaults_json or "{}")
        """Defaults of the model's folder by name; some names are no inputs."""
        pipeline = {name: json.loads(one.default_json) for name, one in self.inputs.items() if one.default_json}
        self.defaults: dict[str, Any] = {**pipeline, **self.recommended}
        """The pipeline's defaults, and over them the folder's. `stages/describe.py` puts the folder's into the inputs
        as well; a description in an older journal has them apart."""

    @property
    def output_count_input(self) -> str | None:
        """The input that `num_outputs` sets; None where the pipeline makes one result a job."""
        return next((name for name in self.inputs if OUTPUT_COUNT_INPUT.fullmatch(name)), None)


def accepted_names(name: str, names: Iterable[str]) -> str:
    """What is accepted instead of an unknown name: those close to it, or else all."""
    known = sorted(names)
    close = difflib.get_close_matches(name[:NAME_CHARS_MAX], known, n=3)
    if close:
        return f"{' or '.join(close)} (close to it), of {len(known)} names that DescribeModel lists"
    return ", ".join(known) if known else "nothing; this pipeline takes none"


def named(model: str, digest: str) -> str:
    """A model for people."""
    return f"{model!r} (digest {digest[:DIGEST_CHARS]})"


def waiting_sentence(job_count: int, model: str, digest: str) -> str:
    """What to do about jobs that wait for a model that the fleet doesn't serve."""
    jobs = "1 job waits" if job_count == 1 else f"{job_count} jobs wait"
    return (
        f"{jobs} for the model {named(model, digest)}, which this fleet doesn't serve: start a fleet with "
        f"`--model {model}`, use another state folder, or end them with "
        f"`triptych jobs --discard-model {digest[:DIGEST_CHARS]}`"
    )


def is_hub_id(model: str) -> bool:
    """Whether a model that isn't a folder may be one on the hub: `owner/name`, and nothing that looks like a path."""
    return _HUB_ID.fullmatch(model) is not None
