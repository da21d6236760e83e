"""A `ModelDescription`, parsed once: its inputs by name, and what a request gets that leaves one of them out."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from typing import Any

from triptych.v1 import model_pb2

NAME_CHARS_MAX = 128
"""Longest name that names are compared with: no input's is half as long, and the comparison takes time."""

MEDIA_KINDS = (model_pb2.INPUT_KIND_IMAGE, model_pb2.INPUT_KIND_VIDEO)

OUTPUT_COUNT_INPUT = re.compile(r"num_\w+_per_prompt")
"""Name of the input that `num_outputs` sets, for example `num_videos_per_prompt`."""


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
