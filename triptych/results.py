"""Results at rest: files under an fsspec URL, whole or absent."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from triptych.errors import InvalidRequest, SourceCorrupt
from triptych.v1.job_pb2 import Artifact, Job

NAME_CHARS_MAX = 128
"""Longest name of a file; file systems end at 255 bytes, and `store` needs some for its temporary ones."""
_NAME = re.compile(r"[^/\\\x00-\x1f.][^/\\\x00-\x1f]*")
"""A visible file's name: no folder, no control character."""
CHUNK_BYTES = 2**20
"""Piece of a file in one message, far below gRPC's limits."""


def check_url(field: str, url: str) -> str:
    """Return `url` absolute, making the folder where it is local. Raises InvalidRequest when it can't be written."""
    try:
        fs, path = fsspec.core.url_to_fs(url)
        fs.makedirs(path, exist_ok=True)
    except (OSError, ValueError, ImportError) as error:
        raise InvalidRequest(field, url, f"an fsspec URL of a folder that can be written ({error})") from error
    return str(fs.unstrip_protocol(path))


def store(url: str, job_id: str, name: str, media_type: str, data: bytes) -> Artifact:
    """Write one file durably, under a temporary name first, and describe it.

    Two workers that store the same result race without harm: each renames a whole file over the other's equal one.
    Raises what the store does, OSError above all, and leaves nothing behind then; see `is_full`.
    """
    fs, folder = fsspec.core.url_to_fs(f"{url.rstrip('/')}/{job_id}")
    fs.makedirs(folder, exist_ok=True)
    path = f"{folder}/{name}"
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}"
    try:
        with fs.open(temporary, "wb") as file:
            file.write(data)
            _sync(file)
        fs.mv(temporary, path)
    except BaseException:
        with contextlib.suppress(Exception):  # the first error counts, and where nothing was written this fails
            fs.rm(temporary)
        raise
    if "file" in _protocols(fs):
        _sync_folder(Path(folder))
    return Artifact(
        name=name,
        media_type=media_type,
        url=str(fs.unstrip_protocol(path)),
        size_bytes=len(data),
        sha256=hashlib.sha256(data).digest(),
    )


def probe(url: str) -> None:
    """Write a file under `url`, read it back and remove it. Raises what the store does, and SourceCorrupt."""
    job_id = f"probe-{uuid.uuid4().hex}"
    artifact = store(url, job_id, "probe", "application/octet-stream", job_id.encode())
    try:
        for _chunk in read(artifact):
            pass
    finally:
        remove(url, Job(job_id=job_id, artifacts=[artifact]))


def is_full(error: OSError) -> bool:
    """Whether a store had no space: a condition that passes, and no fault of the job's."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def check_artifact(artifact: Artifact, url: str, job_id: str) -> None:
    """Raise InvalidRequest unless an artifact is where `store` puts a file of this job under `url`."""
    name = artifact.name
    if not _NAME.fullmatch(name) or len(name) > NAME_CHARS_MAX:
        raise InvalidRequest("artifacts.name", name, f"a file's name of up to {NAME_CHARS_MAX} characters")
    wanted = f"{url.rstrip('/')}/{job_id}/{name}"
    if artifact.url != wanted:
        raise InvalidRequest("artifacts.url", artifact.url, wanted)
    if len(artifact.sha256) != hashlib.sha256().digest_size:
        raise InvalidRequest("artifacts.sha256", f"{len(artifact.sha256)} bytes", "a SHA-256, 32 bytes")


def check_place(artifact: Artifact, job_id: str) -> None:
    """Raise InvalidRequest unless an artifact's file is the job's own, whatever `result_url` was when it was stored.

    Folders are not followed out of: neither `..` nor a symbolic link leads to another file.
    """
    accepted = f"a file in the folder {job_id} of a result URL"
    folder, _, name = artifact.url.rpartition("/")
    if name != artifact.name or not _NAME.fullmatch(name) or folder.rpartition("/")[2] != job_id or "::" in folder:
        raise InvalidRequest("artifacts.url", artifact.url, accepted)
    fs, path = fsspec.core.url_to_fs(artifact.url)
    if "file" in _protocols(fs):
        parent = os.path.realpath(os.path.dirname(os.path.dirname(path)))
        if os.path.realpath(path) != f"{parent}/{job_id}/{name}":
            raise InvalidRequest("artifacts.url", artifact.url, accepted)


def read(artifact: Artifact) -> Iterator[bytes]:
    """Yield a stored file in pieces. Raises SourceCorrupt when it is missing, or its digest isn't the stored one."""
    digest = hashlib.sha256()
    try:
        with fsspec.open(artifact.url, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                yield chunk
    except OSError as error:
        raise SourceCorrupt(f"the stored file {artifact.name} can't be read ({type(error).__name__})") from error
    if digest.digest() != artifact.sha256:
        raise SourceCorrupt(f"the stored file {artifact.name} is not what was written: its SHA-256 differs")


def remove(url: str, job: Job) -> None:
    """Remove whatever was stored for a job, below `url` or where its artifacts say. Nothing there is no error.

    Raises OSError where the store refuses.
    """
    folders = {f"{url.rstrip('/')}/{job.job_id}", *(artifact.url.rpartition("/")[0] for artifact in job.artifacts)}
    for folder in folders:
        if folder.rpartition("/")[2] != job.job_id:
            continue  # not made by `store`: there may be other things in it
        fs, path = fsspec.core.url_to_fs(folder)
        if "file" in _protocols(fs) and os.path.islink(path):
            continue  # what it leads to is somebody else's
        with contextlib.suppress(FileNotFoundError):
            fs.rm(path, recursive=True)


def _sync(file: Any) -> None:
    file.flush()
    try:
        descriptor = file.fileno()
    except (OSError, AttributeError):
        return  # not a local file: the store's own close makes it durable
    os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
