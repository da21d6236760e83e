"""Models of the hub: which commit they are of, and whether what was downloaded is still what the hub has.

The hub names files by their content, so a commit stands for all of a model's bytes, also for those that this role
doesn't download. What lies in the cache may have been changed since; so it is compared with its names.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from triptych.errors import ModelInvalid
from triptych.stages.digests import file_digest, files_of

_SHA256 = re.compile(r"[0-9a-f]{64}")
"""Name of a large file's content."""
_GIT = re.compile(r"[0-9a-f]{40}")
"""Name of any other file's content, by git's own way."""
MARKER_NAMES = ("modular_model_index.json", "model_index.json", "config.json")
"""One of these is in the cache once anything of a model is."""


def commit_of(repo: str, revision: str) -> str:
    """The commit that a revision means now; the revision as it is where neither hub nor cache can tell."""
    from huggingface_hub import resolve_revision
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RevisionResolutionError

    try:
        return resolve_revision(repo, revision=revision or None).resolved
    except (HfHubHTTPError, HFValidationError, RevisionResolutionError, OSError):
        return revision


def check_downloaded(repo: str, commit: str) -> None:
    """Raise `ModelInvalid` where a file of the local cache isn't what its name says: changed in place, or damaged."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repo, name, revision=commit or None) for name in MARKER_NAMES)
    marker = next((path for path in found if isinstance(path, str)), None)
    if marker is None:
        return
    for path in files_of(Path(marker).parent):
        name = path.resolve().name
        is_right = (
            file_digest(path) == name
            if _SHA256.fullmatch(name)
            else _git_name(path) == name
            if _GIT.fullmatch(name)
            else True
        )
        if not is_right:
            raise ModelInvalid(f"{path} isn't what the hub has under this name: it was changed or damaged; delete it")


def _git_name(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
