"""A model's digest covers every byte that a loader may read, is quick the second time, and is never out of date."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import models
from triptych.errors import ModelInvalid
from triptych.stages import digests
from triptych.stages.digests import KEPT_BYTES_MIN, SETTLED_NS, file_digest, folder_digest
from triptych.stages.whole import Whole

TIMEOUT_S = 120.0
FILES_MADE = 20


@pytest.fixture
def copy(folder_of: Callable[[str], str], tmp_path: Path) -> Path:
    """A copy of a tiny model that a test may change."""
    return Path(shutil.copytree(folder_of("qwen_image"), tmp_path / "model"))


def flip(path: Path, position: int) -> None:
    """Change one byte in place."""
    with path.open("r+b") as file:
        file.seek(position)
        old = file.read(1)
        file.seek(position)
        file.write(bytes([old[0] ^ 1]))


def test_any_changed_byte_of_any_file_changes_it(copy: Path) -> None:
    """Weights, tokenizers, configs, indexes and code alike; first, middle and last byte."""
    (copy / "transformer" / "extra.bin").write_bytes(b"weights of another format")
    (copy / "text_encoder" / "sentencepiece.model").write_bytes(b"pieces")
    (copy / "tokenizer" / "chat_template.jinja").write_text("{{ messages }}")
    (copy / "block.py").write_text("pass")
    models.recommend(copy, num_inference_steps=2)
    files = [path for path in sorted(copy.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    assert {".safetensors", ".json", ".bin", ".model", ".jinja", ".py"} <= {path.suffix for path in files}
    whole = folder_digest(copy)
    for path in files:
        for position in {0, path.stat().st_size // 2, path.stat().st_size - 1}:
            flip(path, position)
            assert folder_digest(copy) != whole, f"{path} at {position}"
            flip(path, position)
    assert folder_digest(copy) == whole


def test_files_that_come_go_or_change_names_change_it(copy: Path) -> None:
    whole = folder_digest(copy)
    (copy / "README.md").write_text("a model card, which the hub changes by itself")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "when").write_text("it was downloaded")
    assert folder_digest(copy) == whole
    new = copy / "tokenizer" / "added_tokens.json"
    new.write_text("{}")
    assert folder_digest(copy) != whole
    moved = new.rename(copy / "vae" / "added_tokens.json")
    with_moved = folder_digest(copy)
    assert with_moved != whole
    moved.rename(copy / "vae" / "other.json")
    assert folder_digest(copy) not in (whole, with_moved)


def test_one_tensor_that_is_changed_in_place_makes_another_model(copy: Path) -> None:
    """The case that gave two results: far from the file's end, with its size and time as they were."""
    digest = Whole.open(str(copy)).config_digest()
    (weights,) = (copy / "transformer").glob("*.safetensors")
    before = weights.stat()
    flip(weights, weights.stat().st_size // 2)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert Whole.open(str(copy)).config_digest() != digest


def test_components_elsewhere_count(copy: Path, tmp_path: Path) -> None:
    """A modular index may take a component from another folder."""
    vae = Path(shutil.copytree(copy / "vae", tmp_path / "elsewhere" / "vae"))
    index = json.loads((copy / "model_index.json").read_text())
    modular = {key: value for key, value in index.items() if key.startswith("_")}
    for name, value in index.items():
        if not name.startswith("_"):
            place = tmp_path / "elsewhere" if name == "vae" else copy
            modular[name] = [*value, {"pretrained_model_name_or_path": str(place), "subfolder": name}]
            modular[name][2]["type_hint"] = value
    pipeline = Whole.open(str(copy)).pipeline
    modular["_class_name"], modular["_blocks_class_name"] = type(pipeline).__name__, type(pipeline._blocks).__name__
    shutil.rmtree(copy / "vae")
    (copy / "modular_model_index.json").write_text(json.dumps(modular))
    digest = Whole.open(str(copy)).config_digest()
    (weights,) = vae.glob("*.safetensors")
    flip(weights, weights.stat().st_size // 2)
    assert Whole.open(str(copy)).config_digest() != digest


def test_versions_of_the_software_are_in_it() -> None:
    versions = digests.software()
    assert {"torch", "diffusers", "transformers", "tokenizers", "numpy", "pillow", "av"} <= versions.keys()
    assert versions["torch"]
    assert "+" not in versions["torch"], "builds for CPUs and cards are for roles to have, not for models"


# -- the cache ----------------------------------------------------------------------------------------------------


def digest_in_new_process(path: Path, cache: Path) -> str:
    """As a worker's start computes it."""
    return finish(start(path, cache))


def start(path: Path, cache: Path) -> subprocess.Popen[str]:
    code = (
        "import sys, pathlib; from triptych.stages.digests import file_digest; "
        "print(file_digest(pathlib.Path(sys.argv[1])))"
    )
    environ = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=pipe, stderr=pipe, text=True, env=environ)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    return out.strip()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Files that are large enough to be kept, made at once, so that they grow old together."""
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / f"{number}.safetensors" for number in range(FILES_MADE)]
    for path in paths:
        path.write_bytes(os.urandom(KEPT_BYTES_MIN))
    return iter(paths)


@pytest.fixture
def weights(files: Iterator[Path]) -> Path:
    """A file of a test's own that was last changed long enough ago."""
    path = next(files)
    settle(path)
    return path


def settle(path: Path) -> None:
    """Wait until a file's last change is old enough. Nothing can be waited for here but the clock."""
    changed_ns = path.stat().st_ctime_ns
    while time.time_ns() <= changed_ns + SETTLED_NS:
        path.stat()


def right(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "triptych" / "digests").glob("*"))


def test_a_large_file_is_read_once(weights: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert digest_in_new_process(weights, cache) == right(weights)
    (entry,) = kept(cache)
    planted = entry.read_text().replace(right(weights), "0" * 64)
    entry.write_text(planted)
    assert digest_in_new_process(weights, cache) == "0" * 64, "the cache is asked"
    before = weights.stat()
    flip(weights, KEPT_BYTES_MIN // 2)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert digest_in_new_process(weights, cache) == right(weights), "it was changed in place, and its time set back"
    assert entry.read_text() == planted, "too young to be kept"


@pytest.mark.parametrize("content", ["", "1 2 3", "garbage\0", "1 2 3 " + "f" * 64])
def test_a_cache_with_something_else_in_it(content: str, weights: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    digest_in_new_process(weights, cache)
    (entry,) = kept(cache)
    whole = entry.read_text()
    entry.write_text(content)
    assert digest_in_new_process(weights, cache) == right(weights)
    assert entry.read_text() == whole


def test_starts_at_the_same_time(weights: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    processes = [start(weights, cache) for _ in range(4)]
    assert {finish(process) for process in processes} == {right(weights)}
    (entry,) = kept(cache)
    assert entry.read_text().split()[-1] == right(weights)


def test_a_cache_that_cannot_be_written(weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "cache"
    file.write_text("no folder")
    assert digest_in_new_process(weights, file) == right(weights)


def test_a_link_counts_by_the_file_that_it_leads_to(weights: Path, tmp_path: Path) -> None:
    """As in the hub's cache, where several revisions share a file."""
    cache, link = tmp_path / "cache", tmp_path / "link"
    link.symlink_to(weights)
    assert digest_in_new_process(link, cache) == digest_in_new_process(weights, cache)
    assert len(kept(cache)) == 1


def test_links_to_folders_are_followed_and_end(copy: Path, tmp_path: Path) -> None:
    """A model put together of others' parts is the model that a copy of all would be."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for entry in copy.iterdir():
        (linked / entry.name).symlink_to(entry)
    assert folder_digest(linked) == folder_digest(copy)
    (linked / "own").mkdir()
    (linked / "own" / "back").symlink_to(linked)
    assert folder_digest(linked) == folder_digest(copy)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    link = tmp_path / "gone"
    link.symlink_to(tmp_path / "nothing")
    with pytest.raises(ModelInvalid, match="gone can't be read: No such file"):
        file_digest(link)
