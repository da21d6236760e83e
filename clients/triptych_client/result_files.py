"""Results on this machine: their names, and writing them whole or not at all.

Only the name that the caller gave is ever overwritten. Names that are derived from it (of several outputs, of a file
of another kind) must be free, and temporary names are random and new, so that no other file is overwritten or deleted.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from triptych.errors import InvalidRequest, SourceCorrupt
from triptych.media.formats import ALIASES, FORMATS
from triptych.v1.job_pb2 import Artifact

SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,16}")
"""What a file of a result may end in; another suffix isn't taken over from a controller."""

COMPANION = re.compile(r"\.thumbnail\.[A-Za-z0-9]{1,16}")
"""The suffixes of a file that goes beside a result, and is none itself."""

TOKEN_CHARS = 8
"""Characters of a job's id, or of a random one: enough for a name that no other file has."""


def output_format(path: Path) -> str:
    """The format that a file's suffix asks for. Raises InvalidRequest for one that isn't known."""
    suffix = path.suffix.removeprefix(".").lower()
    suffix = ALIASES.get(suffix, suffix)
    if suffix not in FORMATS:
        raise InvalidRequest("output", str(path), "a file name that ends in ." + ", .".join(FORMATS))
    return suffix


def check_target(path: Path, field: str = "output") -> None:
    """Raises InvalidRequest when no file can be made at `path`: found out before the work, not after it."""
    try:
        target = _real(path)
        found = _stat(target)
        if found is not None and not stat.S_ISREG(found.st_mode):
            raise InvalidRequest(field, str(path), "a file: that is a folder or a device")
        if not target.parent.is_dir():
            raise InvalidRequest(field, str(path), "a file in a folder that exists and can be written")
        if found is not None and not os.access(target, os.W_OK):
            raise InvalidRequest(field, str(path), "a file that may be written")
        with PartFile(path):  # as the result will be: in this folder, under a temporary name
            pass
    except InvalidRequest:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidRequest(
            field, str(path), f"a file in a folder that exists and can be written ({reason})"
        ) from error


def check_free(path: Path, field: str = "output") -> None:
    """As `check_target`, for a derived name: raises InvalidRequest where something has that name, too."""
    check_target(path, field)
    if os.path.lexists(path):
        raise InvalidRequest(field, str(path), "another name: that is there already, and isn't overwritten")


def check_outputs(path: Path, count: int = 1) -> None:
    """Raises InvalidRequest when `count` results can't be written to `path`, or numbered beside it."""
    check_target(path)
    if count > 1:
        for target in output_paths(path, [path.suffix] * count):
            check_free(target)


def check_format(path: Path, names: Sequence[str]) -> None:
    """Raises InvalidRequest for a path that says another format than the files of a result have."""
    suffixes = sorted({_suffix(name, path) for name in names if not _companion(name)})
    if path.suffix and suffixes and not any(_alone(path, suffix) == path for suffix in suffixes):
        raise InvalidRequest("output", str(path), f"a file name that ends in {' or '.join(suffixes)}, as the result is")


def output_paths(path: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """Where the files of a job go: to `path` for one, `out-0.mp4`, `out-1.mp4` … for more.

    A file whose own suffix differs from the one that was asked for (sound beside a video) keeps its own, and a small
    picture is named after its result: `out.thumbnail.webp`.
    """
    results = [name for name in names if not _companion(name)]
    targets: dict[str, Path] = {}
    for number, name in enumerate(results):
        suffix = _suffix(name, path)
        targets[name] = _alone(path, suffix) if len(results) == 1 else path.with_name(f"{path.stem}-{number}{suffix}")
    stems = {name.partition(".")[0]: target.stem for name, target in reversed(targets.items())}
    return tuple(
        targets.get(name) or path.with_name(stems.get(name.partition(".")[0], path.stem) + _companion(name))
        for name in names
    )


def _alone(path: Path, suffix: str) -> Path:
    same = {path.suffix.lower(), "." + ALIASES.get(path.suffix.lower().removeprefix("."), "")}
    return path if suffix in same else path.with_suffix(suffix)


def _companion(name: str) -> str:
    """The suffixes of a small picture's name; empty for any other file's."""
    found = COMPANION.search(name)
    return found.group().lower() if found and found.end() == len(name) else ""


def spare_paths(path: Path, names: Sequence[str], token: str = "") -> tuple[Path, ...]:
    """As `output_paths`, for results that are made: a derived name that can't be had gets a token in it."""
    token = (token or uuid.uuid4().hex)[-TOKEN_CHARS:]
    found: list[Path] = []
    for target in output_paths(path, names):
        if target != path:
            try:
                check_free(target)
            except InvalidRequest:
                stem = path.stem.encode(errors="surrogateescape")[:150].decode(errors="ignore")
                target = target.with_name(f"{stem}-{len(found)}.{token}{target.suffix}")
        found.append(target)
    return tuple(found)


def _suffix(name: str, path: Path) -> str:
    """A result's own suffix, in small letters as they are stored; that of `path` where it has none that is one."""
    suffix = Path(name).suffix
    return (suffix if SUFFIX.fullmatch(suffix) else path.suffix).lower()


def _real(path: Path) -> Path:
    """The file itself, where `path` is a link to it. The link stays."""
    return Path(os.path.realpath(path))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


class PartFile:
    """A file that appears under its name only when it is complete and its content is right.

    Use as a context manager; without `commit` nothing is left behind. `overwrites` says whether the caller gave the
    name; another one must be free, or FileExistsError is raised.
    """

    def __init__(self, path: Path, *, overwrites: bool = True) -> None:
        self._path = _real(path) if overwrites else path
        self._overwrites = overwrites
        # Not after the target's name, which may be as long as the disk allows.
        self._part = self._path.with_name(f".triptych-{uuid.uuid4().hex}.part")
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        """What has been written."""

    def __enter__(self) -> PartFile:
        self._file: BinaryIO = self._part.open("xb")
        return self

    def write(self, chunk: bytes) -> None:
        """Append a piece."""
        self._file.write(chunk)
        self._digest.update(chunk)
        self.size_bytes += len(chunk)

    def restart(self) -> None:
        """Forget what has been written."""
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.size_bytes = 0

    def check(self, artifact: Artifact) -> None:
        """Raises SourceCorrupt when length or SHA-256 are not what the artifact says."""
        if self.size_bytes != artifact.size_bytes:
            raise SourceCorrupt(
                f"{artifact.name} has {self.size_bytes} bytes instead of {artifact.size_bytes}; nothing was kept"
            )
        if self._digest.digest() != artifact.sha256:
            raise SourceCorrupt(f"{artifact.name} came with another SHA-256 than it was stored with; nothing was kept")

    def commit(self) -> None:
        """Make it durable and give it its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if not self._overwrites:
            self._path.open("xb").close()  # the name is taken from here on
        self._part.replace(self._path)

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()  # which may write, and fail
        finally:
            self._part.unlink(missing_ok=True)


def write_file(path: Path, data: bytes, *, overwrites: bool = True) -> None:
    """Write a whole file, or none."""
    with PartFile(path, overwrites=overwrites) as part:
        part.write(data)
        part.commit()


class PreviewFile:
    """The latest preview of a result, in a file beside it, which goes at the end of the block.

    A file that another program made stays.
    """

    def __init__(self, output: Path) -> None:
        self._path = output.with_name(f"{output.stem}.preview.png")
        self._is_ours = False

    def check(self) -> None:
        """Raises InvalidRequest where it can't be made."""
        check_free(self._path, "preview")

    def write(self, png: bytes) -> None:
        """Show this picture. Raises FileExistsError where another program has made such a file."""
        write_file(self._path, png, overwrites=self._is_ours)
        self._is_ours = True

    def __enter__(self) -> PreviewFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            self._path.unlink(missing_ok=True)
