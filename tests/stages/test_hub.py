"""Models of the hub count by their commit, all components come from it, and what was changed in the cache is refused.

The hub's own cache is laid out by hand, and asked offline.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TIMEOUT_S = 120.0
COMMITS = ("a" * 40, "b" * 40)
REPO = "somebody/tiny"


class Cache:
    """A hub cache that holds two commits of a model, the second with another VAE."""

    def __init__(self, home: Path) -> None:
        self.home, self.repo = home, home / "hub" / f"models--{REPO.replace('/', '--')}"

    def add(self, commit: str, folder: Path) -> None:
        """A commit with all files of a folder, named by their content as the hub names them."""
        blobs = self.repo / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
            data = path.read_bytes()
            is_large = path.suffix == ".safetensors"
            name = hashlib.sha256(data) if is_large else hashlib.sha1(b"blob %d\0" % len(data) + data)
            blob, link = blobs / name.hexdigest(), self.repo / "snapshots" / commit / path.relative_to(folder)
            blob.write_bytes(data)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))

    def name(self, branch: str, commit: str) -> None:
        """What a branch means."""
        ref = self.repo / "refs" / branch
        ref.parent.mkdir(exist_ok=True)
        ref.write_text(commit)

    def ask(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run code in a process that sees this cache and no network."""
        environ = {**os.environ, "HF_HOME": str(self.home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


STAGES = f"""
import hashlib
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.v1.dispatch_pb2 import ROLE_DECODER
def digest(revision=""):
    return Whole.open({REPO!r}, revision).config_digest()
def vae_of(whole):
    stage = Stage.load(whole, ROLE_DECODER)
    state = stage._pipeline.vae.state_dict()
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()
"""


@pytest.fixture
def cache(folder_of: Callable[[str], str], tmp_path: Path) -> Cache:
    first = Path(folder_of("wan_t2v"))
    second = Path(shutil.copytree(first, tmp_path / "second"))
    (weights,) = (second / "vae").glob("*.safetensors")
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    made = Cache(tmp_path / "home")
    for commit, folder in zip(COMMITS, (first, second), strict=True):
        made.add(commit, folder)
        made.name(f"v{commit[0]}", commit)
    made.name("main", COMMITS[1])
    return made


def test_a_commit_is_a_model_and_all_of_it_is_loaded(cache: Cache) -> None:
    """Branches are only names; and a revision counts for weights, not only for configs."""
    found = cache.ask(
        STAGES
        + f"""
assert digest() == digest("main") == digest("vb") == digest({COMMITS[1]!r})
assert digest("va") == digest({COMMITS[0]!r}) != digest()
assert vae_of(Whole.open({REPO!r}, "va")) != vae_of(Whole.open({REPO!r}))
"""
    )
    assert found.returncode == 0, found.stderr


def test_what_was_changed_in_the_cache_is_refused(cache: Cache) -> None:
    for pattern in ("vae/*.safetensors", "scheduler/scheduler_config.json"):
        (path,) = (cache.repo / "snapshots" / COMMITS[0]).glob(pattern)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        found = cache.ask(
            f"from triptych.stages.digests import check_downloaded; check_downloaded({REPO!r}, {COMMITS[0]!r})"
        )
        assert found.returncode == 1
        assert f"{path.name} isn't what the hub has under this name" in found.stderr, found.stderr
        path.write_bytes(data)
