"""The files of adapters: those in a folder, and those of the hub.

A folder holds `NAME.safetensors`, for all components that the file names, or `NAME/COMPONENT.safetensors`, a file for
each component: files for one of two denoisers look alike.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from triptych.errors import InvalidRequest, ModelInvalid
from triptych.stages import digests
from triptych.stages.library_errors import said
from triptych.stages.wrapped import Pair

ADAPTER_FILES_MAX = 1000
"""Most adapters of a folder: each is described to every client that asks for the model."""
_SUFFIX = ".safetensors"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+))?(:(?P<file>[\w./ -]+\.safetensors))?", re.ASCII)


class AdapterFiles(NamedTuple):
    """One adapter on disk."""

    name: str
    digest: str
    """SHA-256 of its files, as hexadecimal digits."""
    parts: tuple[tuple[str, Path], ...]
    """Its files, each with the component that it is for; empty for those that it names itself."""
    size_bytes: int
    is_ip_adapter: bool = False
    """Whether it is one, and no LoRA: see `ip_adapters`."""
    pairs: Mapping[str, Mapping[str, Pair]] = {}
    """The shapes of its matrices by component and path of the layer; of components where it has nothing else."""

    def is_unchanged(self) -> bool:
        """Whether the files are those that were found at the start."""
        return digest_of(self.parts) == self.digest


def digest_of(parts: Sequence[tuple[str, Path]]) -> str:
    """The digest of an adapter's files, each with its component."""
    whole = hashlib.sha256()
    for component, path in parts:
        whole.update(f"{component}\0{digests.file_digest(path)}\0".encode())
    return whole.hexdigest()


def in_folder(folder: str, components: Sequence[str]) -> dict[str, list[tuple[str, Path]]]:
    """Files by the adapter's name, as they lie there. Raises `InvalidRequest` for a folder that can't be used."""
    if not folder:
        return {}
    try:
        entries = sorted(path for path in Path(folder).iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InvalidRequest("adapters", folder, f"a folder that can be read ({error.strerror or error})") from error
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in entries:
        if path.is_dir():
            files = sorted(one for one in path.iterdir() if one.suffix == _SUFFIX and not one.name.startswith("."))
            parts = [(one.stem if one.stem in components else "", one) for one in files]
            name = path.name
        else:
            parts = [("", path)] if path.suffix == _SUFFIX else []
            name = path.stem
        if not parts:
            continue
        if _NAME.fullmatch(name) is None or name in found:
            accepted = "names of letters, digits, '.', '_' and '-', 100 at most, each once"
            raise InvalidRequest("adapters", str(path), accepted)
        found[name] = parts
    if len(found) > ADAPTER_FILES_MAX:
        raise InvalidRequest("adapters", f"{folder} with {len(found)} adapters", f"at most {ADAPTER_FILES_MAX}")
    return found


def of_hub(hub_ids: str) -> dict[str, list[tuple[str, Path]]]:
    """Files of the ids, downloaded to the hub's cache, by `OWNER/NAME`.

    Raises `InvalidRequest` for ids that are none, `ModelInvalid` for files that can't be had.
    """
    found: dict[str, list[tuple[str, Path]]] = {}
    for text in filter(None, (one.strip() for one in hub_ids.split(","))):
        match = _HUB.fullmatch(text)
        if match is None:
            raise InvalidRequest("adapter_ids", text, "OWNER/NAME, OWNER/NAME@REVISION or OWNER/NAME:FILE.safetensors")
        found[match["repo"]] = [("", _downloaded(match["repo"], match["revision"] or "", match["file"] or ""))]
    return found


def _downloaded(repo: str, revision: str, file: str) -> Path:
    from huggingface_hub import snapshot_download

    commit = digests.commit_of(repo, revision)
    try:
        root = Path(snapshot_download(repo, revision=commit, allow_patterns=file or f"*{_SUFFIX}"))
    except Exception as error:
        raise ModelInvalid(f"the adapter {repo!r} can't be downloaded: {said(error)}") from error
    files = [root / file] if file else sorted(root.glob(f"*{_SUFFIX}"))
    if len(files) != 1 or not files[0].is_file():
        names = ", ".join(one.name for one in files) or "none"
        raise ModelInvalid(f"the adapter {repo!r} has not one file but {names}: name it as {repo}:FILE{_SUFFIX}")
    return files[0]
