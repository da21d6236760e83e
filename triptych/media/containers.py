"""Files of FFmpeg's formats that have equal bytes for equal content: no dates, no random identities."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from typing import Any

import av

QP_TO_LAMBDA = 118
"""FFmpeg's factor from an encoder's measure of quality to `global_quality` (FF_QP2LAMBDA)."""


@contextlib.contextmanager
def writing(file: io.BytesIO, name: str, metadata: Mapping[str, str]) -> Iterator[Any]:
    """A container that is written into `file`, with metadata in its own fields."""
    with av.open(file, "w", format=name, options={"fflags": "+bitexact"}) as container:
        container.metadata.update(metadata)
        yield container
