"""Which bytes decide a model's results besides the request: digests of its files, its commit on the hub, the software.

A file's SHA-256 takes a second per gigabyte and core, so that of a large file is kept in the user's cache folder, under
the file's identity: device, inode, size, and the times of its last changes. Nobody can set the change time back, but
two changes within its resolution look like one, so a file that has just changed is read again. Several processes may do
this at the same time; where the cache can't be written, nothing is kept.

A faster, weaker hash won't do: somebody who publishes models could make two of them that count as one.

The hub names files by their content, so a commit stands for all of a model's bytes, also for those that this role
doesn't download. Files in the hub's cache may have been changed since, so their contents are compared with their names.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import queue
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from triptych.environment import cache_folder
from triptych.errors import ModelInvalid
from triptych.stages.library_errors import said

KEPT_BYTES_MIN = 1 << 20
"""Smaller files are read again at every start: that takes no longer than to look their digests up."""
SETTLED_NS = 2 * 10**9
"""A digest is kept of a file that hasn't changed for so long: longer than the resolution of any file system's times."""
FILES_MAX = 20_000
"""Most files of a model; large ones have a few hundred."""
READERS_MAX = 4
"""Files read at the same time: disks are fastest so, and a digest is one core's work."""
PACKAGES = (
    *("torch", "diffusers", "transformers", "tokenizers", "sentencepiece", "safetensors", "accelerate"),
    *("numpy", "scipy", "pillow", "torchvision", "av", "ftfy", "beautifulsoup4", "jinja2", "outlines", "peft"),
    *("causal-conv1d", "flash-linear-attention", "flash-attn", "kernels", "sageattention", "xformers"),
    *("torchao", "torchaudio", "librosa", "soxr", "torchsde", "opencv-python", "opencv-python-headless"),
)
"""Packages whose versions decide bits or how prompts are read. Many are used only where they are installed, in place of
others: torchvision scales pictures in another way than Pillow, and flash-linear-attention has kernels of its own."""
_UNREAD_SUFFIXES = (".md",)
"""Model cards: no loader reads them, and the hub adds them by itself."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
"""Name of a large file's content."""
_GIT = re.compile(r"[0-9a-f]{40}")
"""Name of any other file's content, by git's own way."""
MARKER_NAMES = ("modular_model_index.json", "model_index.json", "config.json")
"""The cache has one of these as soon as it has anything of a model."""
HUB_TIMEOUT_S = 15.0
"""The hub answers in less than one second; a mistyped path shouldn't be looked up there for longer."""

Identity = tuple[int, int, int, int, int]
_known: dict[Identity, str] = {}
"""The digests of this process, which reads a file once even where the cache can't be written."""


def software() -> Mapping[str, str]:
    """Versions by package. Builds for other devices (`+cpu`) count as the same: roles may run on different ones."""
    return {name: _version(name).partition("+")[0] for name in PACKAGES}


def folder_digest(folder: Path) -> str:
    """The digest of a model's files, wherever its folder lies. Raises `ModelInvalid` where one can't be read."""
    paths = files_of(folder)
    whole = hashlib.sha256()
    with ThreadPoolExecutor(READERS_MAX, thread_name_prefix="digest") as readers:
        for path, digest in zip(paths, readers.map(file_digest, paths), strict=True):
            whole.update(f"{path.relative_to(folder).as_posix()}\0{digest}\0".encode())
    return whole.hexdigest()


def files_of(folder: Path) -> list[Path]:
    """Every file below a folder, except model cards and hidden ones (`.git`, `.cache`). Raises `ModelInvalid`."""
    found: list[Path] = []
    try:
        for path in _walk(folder, ()):
            found.append(path)
            if len(found) > FILES_MAX:
                raise ModelInvalid(f"{str(folder)!r} holds more than {FILES_MAX} files: not a model's own folder")
    except OSError as error:
        raise ModelInvalid(f"{str(folder)!r} can't be read: {error.strerror or error}") from error
    return sorted(found)


def file_digest(path: Path) -> str:
    """A file's SHA-256, from the cache where the file is the same. Raises `ModelInvalid` where it can't be read."""
    try:
        before = _identity(path)
        digest = _known.get(before) or _kept(before)
        if digest is None:
            started_ns = time.time_ns()
            digest = _read(path)
            if _identity(path) != before:
                raise ModelInvalid(f"{path} was changed while it was read")
            if max(before[3:]) + SETTLED_NS < started_ns:
                _keep(before, digest)
    except OSError as error:
        raise ModelInvalid(f"{path} can't be read: {error.strerror or error}") from error
    return digest


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Files below a folder, also behind links to folders; one that leads back to a folder `above` it ends there."""
    stat = folder.stat()
    own = (stat.st_dev, stat.st_ino)
    if own in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower().endswith(_UNREAD_SUFFIXES):
                continue
            if entry.is_dir():
                yield from _walk(Path(entry.path), (*above, own))
            else:
                yield Path(entry.path)


def _identity(path: Path) -> Identity:
    """The identity of the file that a link leads to: the hub's cache links to files that several revisions share."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _read(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _place(identity: Identity) -> Path | None:
    """Where a file's digest is kept. A file that changes takes the same place again, so these don't pile up."""
    folder = cache_folder()
    return folder / "digests" / f"{identity[0]:x}-{identity[1]:x}" if folder is not None else None


def _kept(identity: Identity) -> str | None:
    place = _place(identity)
    if identity[2] < KEPT_BYTES_MIN or place is None:
        return None
    try:
        *numbers, digest = place.read_text(encoding="ascii").split()
    except (OSError, ValueError):  # none, or not ours
        return None
    is_whole = len(digest) == 2 * hashlib.sha256().digest_size
    return digest if is_whole and numbers == [str(number) for number in identity[2:]] else None


def _keep(identity: Identity, digest: str) -> None:
    """Keep a digest for later starts, whole or not at all. A cache that can't be written only costs time."""
    _known[identity] = digest
    place = _place(identity)
    if identity[2] < KEPT_BYTES_MIN or place is None:
        return
    with contextlib.suppress(OSError):
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=place.parent, prefix=".", delete=False, encoding="ascii") as file:
            file.write(f"{' '.join(str(number) for number in identity[2:])} {digest}\n")
        os.replace(file.name, place)


def commit_of(repo: str, revision: str) -> str:
    """The commit that a revision means now, or in the cache where the hub can't be reached.

    Raises `ModelInvalid`, within `HUB_TIMEOUT_S`, where neither can tell: the name may also be a folder's, mistyped.
    """
    from huggingface_hub import HfApi, resolve_revision

    answers: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            commit = str(resolve_revision(repo, revision=revision or None).resolved)
            if _marker(repo, commit) is None:  # a commit's number alone doesn't say whether the hub has it
                HfApi().repo_info(repo, revision=commit, timeout=HUB_TIMEOUT_S)
            answers.put(commit)
        except Exception as error:  # noqa: BLE001 — any error is raised below, as one sentence
            answers.put(error)

    threading.Thread(target=ask, name="hub", daemon=True).start()  # a hub that is silent holds up no exit
    try:
        answer = answers.get(timeout=HUB_TIMEOUT_S)
    except queue.Empty:
        answer = TimeoutError(f"the hub did not answer within {HUB_TIMEOUT_S:g} s")
    if not isinstance(answer, Exception):
        return answer
    try:
        commit = str(resolve_revision(repo, revision=revision or None, local_files_only=True).resolved)
    except Exception:  # noqa: BLE001 — the cache doesn't know it either
        commit = ""
    if commit and _marker(repo, commit) is not None:
        return commit
    raise ModelInvalid(
        f"{repo!r} can't be opened: there is no folder of this name here, and as an id of the hub "
        f"{'@' + revision + ' ' if revision else ''}it isn't found: {said(answer)}"
    ) from answer


def _marker(repo: str, commit: str) -> str | None:
    """A file that shows that the cache has something of the commit; None where it has nothing."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repo, name, revision=commit or None) for name in MARKER_NAMES)
    return next((path for path in found if isinstance(path, str)), None)


def check_downloaded(repo: str, commit: str) -> None:
    """Raise `ModelInvalid` where a file of the local cache isn't what its name says: changed in place, or damaged."""
    marker = _marker(repo, commit)
    if marker is None:
        return
    for path in files_of(Path(marker).parent):
        name = path.resolve().name
        content = file_digest(path) if _SHA256.fullmatch(name) else _git_name(path) if _GIT.fullmatch(name) else name
        if content != name:
            raise ModelInvalid(f"{path} isn't what the hub has under this name: it was changed or damaged; delete it")


def _git_name(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
