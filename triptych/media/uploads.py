"""Uploads at rest: files that clients send ahead of jobs, below the result URL, so that any controller finds them.

    <result URL>/uploads/<owner>/<upload id>/until-<Unix seconds>
                                            /piece-<offset>        while it isn't complete
                                            /whole-<SHA-256>       from then on

Names say all but the content, so that a listing is all there is to know. Each file is written as those of results are:
whole or absent, and durably.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import fsspec

from triptych.errors import InvalidRequest, NotFound
from triptych.media import results
from triptych.v1.job_pb2 import Artifact

UPLOADS_FOLDER = "uploads"
"""Beside the folders of jobs, whose names begin with `job-`."""
_ID = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"(until|piece|whole)-([0-9a-f]+)")


class Stored(NamedTuple):
    """What there is of an upload."""

    owner: str
    upload_id: str
    size_bytes: int
    sha256: bytes
    """Empty until it is complete."""
    until_s: int
    """When it is removed, in Unix seconds."""

    @property
    def is_complete(self) -> bool:
        return self.sha256 != b""


def owner_of(client: str) -> str:
    """The folder of a client's uploads. Its name needn't be fit for one."""
    return hashlib.sha256(client.encode()).hexdigest()[:32]


def check_id(upload_id: str) -> None:
    """Raise InvalidRequest for what is no upload's id."""
    if not _ID.fullmatch(upload_id):
        raise InvalidRequest("upload_id", upload_id, "32 hexadecimal digits in lower case: a UUID without hyphens")


def find_all(url: str, *within: str) -> list[Stored]:
    """All uploads, or those of one owner, or one of its. Raises the store's own errors."""
    fs, root = fsspec.core.url_to_fs(_root(url))
    fs.invalidate_cache()
    folders: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    with contextlib.suppress(FileNotFoundError):
        for path, about in fs.find("/".join([root, *within]), detail=True).items():
            owner, upload_id, name = path.rsplit("/", 3)[1:]
            folders[owner, upload_id][name] = int(about["size"])
    return [_stored(*key, files) for key, files in folders.items()]


def find(url: str, owner: str, upload_id: str, now_s: float) -> Stored:
    """An upload. Raises InvalidRequest for another form of id, NotFound for one that isn't there or is too old."""
    check_id(upload_id)
    for stored in find_all(url, owner, upload_id):
        if stored.until_s > now_s:
            return stored
    raise NotFound(f"there is no upload {upload_id!r}")


def begin(url: str, owner: str, upload_id: str, until_s: int) -> Stored:
    """Make room for an upload. Raises the store's own errors, as all that follow do."""
    remove(url, owner, upload_id)  # of one that is too old
    _store(url, owner, upload_id, f"until-{until_s:x}", b"")
    return Stored(owner, upload_id, 0, b"", until_s)


def append(url: str, stored: Stored, data: bytes) -> Stored:
    """Add a piece."""
    _store(url, stored.owner, stored.upload_id, f"piece-{stored.size_bytes:x}", data)
    return stored._replace(size_bytes=stored.size_bytes + len(data))


def finish(url: str, stored: Stored) -> Stored:
    """Make one file of the pieces."""
    fs, folder = fsspec.core.url_to_fs(f"{_root(url)}/{stored.owner}/{stored.upload_id}")
    found = [path for path in fs.ls(folder, detail=False) if path.rpartition("/")[2].startswith("piece-")]
    pieces = {int(path.rpartition("-")[2], 16): path for path in found}
    data = b"".join(fs.cat_file(path) for _offset, path in sorted(pieces.items()))[: stored.size_bytes]
    digest = hashlib.sha256(data)
    _store(url, stored.owner, stored.upload_id, f"whole-{digest.hexdigest()}", data)
    for path in found:
        fs.rm(path)
    return stored._replace(sha256=digest.digest())


def read(url: str, stored: Stored) -> bytes:
    """The content of a complete upload. Raises SourceCorrupt where it isn't what was written."""
    name = f"whole-{stored.sha256.hex()}"
    place = f"{stored.owner}/{stored.upload_id}/{name}"
    artifact = Artifact(name=name, url=place, size_bytes=stored.size_bytes, sha256=stored.sha256)
    return b"".join(results.read(_root(url), artifact, stored.owner))


def remove(url: str, owner: str, upload_id: str) -> None:
    """Remove an upload, if it is there."""
    results.discard(_root(url), owner, upload_id)


def _root(url: str) -> str:
    return f"{url.rstrip('/')}/{UPLOADS_FOLDER}"


def _store(url: str, owner: str, upload_id: str, name: str, data: bytes) -> None:
    results.store(_root(url), owner, upload_id, name, "", data)


def _stored(owner: str, upload_id: str, files: Mapping[str, int]) -> Stored:
    named: dict[str, dict[str, int]] = {"until": {}, "piece": {}, "whole": {}}
    for name, size_bytes in files.items():
        if found := _NAME.fullmatch(name):  # else it is half written
            named[found[1]][found[2]] = size_bytes
    until_s = max((int(digits, 16) for digits in named["until"]), default=0)  # without: its beginning broke off
    for digits, size_bytes in named["whole"].items():
        return Stored(owner, upload_id, size_bytes, bytes.fromhex(digits), until_s)
    size_bytes = 0
    for offset, piece_bytes in sorted((int(digits, 16), piece) for digits, piece in named["piece"].items()):
        if offset != size_bytes:
            break
        size_bytes += piece_bytes
    return Stored(owner, upload_id, size_bytes, b"", until_s)
