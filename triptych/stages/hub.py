"""Models of the hub: which commit they are of, and whether the downloaded files are still those of the hub.

The hub names files by their content, so a commit stands for all of a model's bytes, also for those that this role
doesn't download. Files in the cache may have been changed since, so their contents are compared with their names.
"""

from __future__ import annotations

import hashlib
import queue
import re
import threading
from pathlib import Path

from triptych.errors import ModelInvalid
from triptych.stages.digests import file_digest, files_of
from triptych.stages.library_errors import said

_SHA256 = re.compile(r"[0-9a-f]{64}")
"""Name of a large file's content."""
_GIT = re.compile(r"[0-9a-f]{40}")
"""Name of any other file's content, by git's own way."""
MARKER_NAMES = ("modular_model_index.json", "model_index.json", "config.json")
"""The cache has one of these as soon as it has anything of a model."""


HUB_TIMEOUT_S = 15.0
"""The hub answers in less than one second; a mistyped path shouldn't be looked up there for longer."""


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
