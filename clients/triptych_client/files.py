"""Results on this machine: their names, and writing them whole or not at all."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from triptych.errors import InvalidRequest, SourceCorrupt
from triptych.v1.job_pb2 import Artifact

OUTPUT_FORMATS = ("mp4", "gif", "png", "npy")
"""Formats by suffix."""


def output_format(path: Path) -> str:
    """The format that a file's suffix asks for. Raises InvalidRequest for one that isn't known."""
    suffix = path.suffix.removeprefix(".").lower()
    if suffix not in OUTPUT_FORMATS:
        raise InvalidRequest("output", str(path), "a file name that ends in ." + ", .".join(OUTPUT_FORMATS))
    return suffix


def check_folder(path: Path) -> None:
    """Raises InvalidRequest when a file can't be made at `path`: found out before the work, not after it."""
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InvalidRequest("output", str(path), "a file in a folder that exists and can be written")


def output_paths(path: Path, names: list[str]) -> tuple[Path, ...]:
    """Where the artifacts of a job go: `out.mp4` for one, `out-0.mp4`, `out-1.mp4` … for more.

    A file whose own suffix differs from the one that was asked for (sound beside a video) keeps its own.
    """
    suffixes = [Path(name).suffix or path.suffix for name in names]
    if len(names) == 1:
        return (path.with_suffix(suffixes[0]),)
    return tuple(path.with_name(f"{path.stem}-{i}{suffix}") for i, suffix in enumerate(suffixes))


class PartFile:
    """A file that appears under its name only when it is complete and its content is right.

    Use as a context manager; without `commit` nothing is left behind.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        self._digest = hashlib.sha256()
        self._size_bytes = 0

    def __enter__(self) -> PartFile:
        self._file: BinaryIO = self._part.open("xb")
        return self

    def write(self, chunk: bytes) -> None:
        """Append a piece."""
        self._file.write(chunk)
        self._digest.update(chunk)
        self._size_bytes += len(chunk)

    def check(self, artifact: Artifact) -> None:
        """Raises SourceCorrupt when length or SHA-256 are not what the artifact says."""
        if self._size_bytes != artifact.size_bytes:
            raise SourceCorrupt(
                f"{artifact.name} has {self._size_bytes} bytes instead of {artifact.size_bytes}; nothing was kept"
            )
        if self._digest.digest() != artifact.sha256:
            raise SourceCorrupt(f"{artifact.name} came with another SHA-256 than it was stored with; nothing was kept")

    def commit(self) -> None:
        """Make it durable and give it its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._part.replace(self._path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file, or none."""
    with PartFile(path) as part:
        part.write(data)
        part.commit()
