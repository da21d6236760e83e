"""Results at rest: files under an fsspec URL, whole or absent, and never written twice.

    <result URL>/<job id>/<token>/<name>

Each attempt at storing a job's results takes a fresh token, so a late or refused attempt never touches accepted files.
The journal says which attempt counts. It names files relative to the result URL, so that the folder can be moved.
(Records of older controllers have an absolute URL, of `<job id>/<name>`.)
"""

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

FILE_NAME_CHARS_MAX = 128
"""Longest name of a file. File systems allow 255 bytes, and `store` needs some of them for its temporary names."""
_NAME = re.compile(r"[^/\\\x00-\x1f.][^/\\\x00-\x1f]*")
"""The name of a visible file: no folder, no control character."""
_TOKEN = re.compile(r"[0-9a-f]{32}")
CHUNK_BYTES = 2**20
"""Piece of a file in one message, far below gRPC's limit."""


def new_token() -> str:
    """A fresh name for an attempt's folder."""
    return uuid.uuid4().hex


def check_url(field: str, url: str) -> str:
    """Make the folder of `url` and return it as an absolute URL. Raises InvalidRequest if the folder can't be made."""
    try:
        fs, path = fsspec.core.url_to_fs(url)
        fs.makedirs(path, exist_ok=True)
    except (OSError, ValueError, ImportError) as error:
        raise InvalidRequest(field, url, f"an fsspec URL of a folder that can be written ({error})") from error
    return str(fs.unstrip_protocol(path))


def store(url: str, job_id: str, token: str, name: str, media_type: str, data: bytes) -> Artifact:
    """Write one file of an attempt durably and describe it. On an error, which is the store's own, nothing is left.

    Most errors are OSErrors; see `is_full`.
    """
    place = f"{job_id}/{token}/{name}"
    fs, root = fsspec.core.url_to_fs(url.rstrip("/"))
    folder = f"{root}/{job_id}/{token}"
    path = f"{root}/{place}"
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}"
    try:
        fs.makedirs(folder, exist_ok=True)
        with fs.open(temporary, "wb") as file:
            file.write(data)
            _sync(file)
        fs.mv(temporary, path)
        if "file" in _protocols(fs):
            for changed in (folder, f"{root}/{job_id}", root):  # a new folder is an entry of its parent
                _sync_folder(Path(changed))
    except BaseException:
        with contextlib.suppress(Exception):  # the first error counts; this fails if nothing was written
            fs.rm(temporary)
        raise
    return Artifact(
        name=name,
        media_type=media_type,
        url=place,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).digest(),
    )


def discard(url: str, job_id: str, token: str) -> None:
    """Remove all files of an attempt, if there are any. Raises the store's own errors."""
    fs, path = fsspec.core.url_to_fs(f"{url.rstrip('/')}/{job_id}/{token}")
    with contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)


def sweep(url: str, job: Job) -> None:
    """Remove all files of an ended job except the accepted ones. Raises the store's own errors."""
    fs, path = fsspec.core.url_to_fs(f"{url.rstrip('/')}/{job.job_id}")
    kept = {artifact.url.split("/")[1] for artifact in job.artifacts if "://" not in artifact.url}
    try:
        found = [entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False)]
    except FileNotFoundError:
        return
    for name in set(found) - kept:
        if _TOKEN.fullmatch(name):
            discard(url, job.job_id, name)


def probe(url: str) -> None:
    """Write a file under `url`, read it back and remove it. Raises the store's own errors and SourceCorrupt."""
    job_id = f"probe-{new_token()}"
    artifact = store(url, job_id, new_token(), "probe", "application/octet-stream", job_id.encode())
    try:
        for _chunk in read(url, artifact, job_id):
            pass
    finally:
        remove(url, Job(job_id=job_id, artifacts=[artifact]))


def check_store(field: str, url: str) -> None:
    """Write, sync, read and remove a file under `url`; raise InvalidRequest if that fails. A full store passes."""
    accepted = "an fsspec URL where files can be written, read and removed"
    if "memory" in _protocols(fsspec.core.url_to_fs(url)[0]):
        raise InvalidRequest(field, url, "a place that decoders and the controller share; each has its own memory")
    try:
        probe(url)
    except Exception as error:  # stores raise their libraries' errors
        if not (isinstance(error, OSError) and is_full(error)):
            raise InvalidRequest(field, url, f"{accepted} ({type(error).__name__}: {error})") from error


def is_full(error: OSError) -> bool:
    """Whether a store had no space. That passes, and is no fault of the job."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def check_artifact(artifact: Artifact, job_id: str) -> None:
    """Raise InvalidRequest unless an artifact is at a place where `store` puts files of this job."""
    name = artifact.name
    if not _NAME.fullmatch(name) or len(name) > FILE_NAME_CHARS_MAX:
        raise InvalidRequest("artifacts.name", name, f"a file's name of up to {FILE_NAME_CHARS_MAX} characters")
    parts = artifact.url.split("/")
    if len(parts) != 3 or parts[::2] != [job_id, name] or not _TOKEN.fullmatch(parts[1]):
        raise InvalidRequest("artifacts.url", artifact.url, f"{job_id}/TOKEN/{name}")
    if len(artifact.sha256) != hashlib.sha256().digest_size:
        raise InvalidRequest("artifacts.sha256", f"{len(artifact.sha256)} bytes", "a SHA-256, 32 bytes")


def locate(url: str, artifact: Artifact, job_id: str) -> str:
    """The URL of an artifact's file, without `..` or symbolic links to another job's.

    An older journal has absolute URLs; their files are looked for under `url` first, since the folder may have been
    moved. Raises InvalidRequest for a place where `store` puts no file.
    """
    if "://" not in artifact.url:
        check_artifact(artifact, job_id)
        return _checked(f"{url.rstrip('/')}/{artifact.url}", artifact.url.count("/"))
    accepted = f"a file in the folder {job_id} of a result URL"
    folder, _, name = artifact.url.rpartition("/")
    if name != artifact.name or not _NAME.fullmatch(name) or folder.rpartition("/")[2] != job_id or "::" in folder:
        raise InvalidRequest("artifacts.url", name, accepted)
    moved = f"{url.rstrip('/')}/{job_id}/{name}"
    fs, path = fsspec.core.url_to_fs(moved)
    return _checked(moved if fs.exists(path) else artifact.url, 1)


def _checked(url: str, depth: int) -> str:
    """The URL, if neither the file nor any of its last `depth` folders is a link. Raises InvalidRequest."""
    fs, path = fsspec.core.url_to_fs(url)
    if "file" in _protocols(fs):
        own = path.rstrip("/").split("/")[-depth - 1 :]
        root = os.path.realpath(path.rstrip("/")[: -len("/".join(own)) - 1])
        if os.path.realpath(path) != "/".join([root.rstrip("/"), *own]):
            raise InvalidRequest("artifacts.url", own[-1], "a file that is no link, in folders that are none")
    return url


def read(url: str, artifact: Artifact, job_id: str, offset_bytes: int = 0) -> Iterator[bytes]:
    """Yield a job's stored file in pieces, from an offset on. All of it is read, because the digest covers all of it.

    Raises InvalidRequest as `locate` does, and SourceCorrupt if the file is missing or its digest differs.
    """
    digest = hashlib.sha256()
    place = locate(url, artifact, job_id)
    try:
        with fsspec.open(place, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                wanted = chunk[offset_bytes:]
                offset_bytes = max(0, offset_bytes - len(chunk))
                if wanted:
                    yield wanted
    except OSError as error:
        raise SourceCorrupt(f"the stored file {artifact.name} can't be read ({type(error).__name__})") from error
    if digest.digest() != artifact.sha256:
        raise SourceCorrupt(f"the stored file {artifact.name} is not what was written: its SHA-256 differs")


def remove(url: str, job: Job) -> None:
    """Remove a job's files, below `url` and where its artifacts say, if there are any. Raises OSError."""
    absolute = (artifact.url for artifact in job.artifacts if "://" in artifact.url)
    folders = {f"{url.rstrip('/')}/{job.job_id}", *(place.rpartition("/")[0] for place in absolute)}
    for folder in folders:
        if folder.rpartition("/")[2] != job.job_id:
            continue  # not made by `store`, so it may have other content
        fs, path = fsspec.core.url_to_fs(folder)
        if "file" in _protocols(fs) and os.path.islink(path):
            continue  # its target isn't ours
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
