"""Bearer tokens of clients: a file of their digests, read again when it changes.

    [alice]                         jobs are counted and shown as those of `token:alice`
    sha256 = "5e884898da28…"        of the token
    scopes = ["submit", "read"]     see triptych.security.identity
    jobs_max = 100                  unfinished jobs at once; absent or 0 for no limit

A token is 32 random bytes, which nobody can guess: one SHA-256 is enough, without salt. The file holds no secret, but
anybody who can write it can let others in.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.errors import InvalidRequest
from triptych.security.identity import BY_TOKEN, CALLER_NAME, NAME_ACCEPTED, SCOPES, Identity
from triptych.security.live_files import LiveFiles, replace_file

PREFIX = "triptych_"
"""Begins every token, so that scanners for leaked secrets, and people, recognise one."""
TOKEN_BYTES = 32
TOKEN_CHARS_MAX = 256
"""Longest token that is looked at."""
Entries = Mapping[str, tuple[bytes, Identity]]


class Tokens:
    """What a token file says now."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises InvalidRequest."""
        self._entries = LiveFiles("tokens", [path], lambda _before: _read(path))

    def identify(self, token: str) -> Identity | None:
        """Whose token this is; None where it is nobody's. Takes the same time whichever digest is right, or none."""
        digest = _digest(token[:TOKEN_CHARS_MAX])
        found = None
        for expected, identity in self._entries.get().values():
            if hmac.compare_digest(expected, digest):
                found = identity
        return found


def add(path: Path, name: str, scopes: Sequence[str], jobs_max: int = 0) -> str:
    """Make a token, write its digest to the file (made where it isn't there) and return it. Raises InvalidRequest."""
    token = PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(TOKEN_BYTES)).decode().rstrip("=")
    entry: dict[str, Any] = {"sha256": _digest(token).hex(), "scopes": list(scopes)}
    if jobs_max:
        entry["jobs_max"] = jobs_max
    _entry(name, entry)
    with _changing(path):
        entries = _read_raw(path) if path.exists() else {}
        if name in entries:
            raise InvalidRequest("name", name, "a name that has no token yet; `triptych tokens remove` takes one away")
        _write(path, {**entries, name: entry})
    return token


def remove(path: Path, name: str) -> None:
    """Take a client's token away; servers refuse it with its next call. Raises InvalidRequest."""
    with _changing(path):
        entries = _read_raw(path)
        if name not in entries:
            raise InvalidRequest("name", name, "one of " + ", ".join(sorted(entries)))
        _write(path, {key: entry for key, entry in entries.items() if key != name})


def read(path: Path) -> list[Identity]:
    """The clients of a file. Raises InvalidRequest."""
    return [identity for _digest, identity in _read(path).values()]


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[None]:
    """One change of the file at a time: two would lose one of them. Locks its folder, since the file is replaced."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise InvalidRequest("tokens", str(path), f"a file in a folder that can be opened ({error})") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _read(path: Path) -> Entries:
    entries = {name: _entry(name, entry) for name, entry in _read_raw(path).items()}
    owners: dict[bytes, str] = {}
    for name, (digest, _identity) in entries.items():
        if (other := owners.setdefault(digest, name)) != name:
            raise InvalidRequest(f"tokens: {name}.sha256", "something else", f"a token of its own, and not {other}'s")
    return entries


def _read_raw(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidRequest("tokens", str(path), f"a TOML file of clients and their digests ({error})") from error


def _entry(name: str, entry: Any) -> tuple[bytes, Identity]:
    if not CALLER_NAME.fullmatch(name):
        raise InvalidRequest("name", name, NAME_ACCEPTED)
    if not isinstance(entry, dict) or not entry.keys() <= {"sha256", "scopes", "jobs_max"}:
        raise InvalidRequest(f"tokens: {name}", "something else", "a table of sha256, scopes and jobs_max")
    scopes = entry.get("scopes")
    jobs_max = entry.get("jobs_max", 0)
    if not isinstance(scopes, list) or not scopes or not set(map(str, scopes)) <= set(SCOPES):
        raise InvalidRequest(f"tokens: {name}.scopes", scopes, "a list of some of " + ", ".join(SCOPES))
    if not isinstance(jobs_max, int) or jobs_max < 0:
        raise InvalidRequest(f"tokens: {name}.jobs_max", jobs_max, "a whole number, 0 for no limit")
    try:
        digest = bytes.fromhex(str(entry.get("sha256", "")))
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise InvalidRequest(f"tokens: {name}.sha256", "something else", "64 hexadecimal digits")
    return digest, Identity(f"{BY_TOKEN}:{name}", frozenset(scopes), jobs_max)


def _write(path: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    lines = []
    for name, entry in entries.items():
        lines.append(f"[{json.dumps(name)}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
        lines.append("")
    try:
        replace_file(path, "\n".join(lines).encode(), 0o600)
    except OSError as error:
        raise InvalidRequest("tokens", os.fspath(path), f"a file that can be written ({error})") from error
