"""Stored results are whole or absent, and verified when they are read."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from triptych.errors import InvalidRequest, SourceCorrupt
from triptych.media import results
from triptych.v1.job_pb2 import Artifact, Job

TOKEN = results.new_token()


def test_what_is_stored_is_read_back(tmp_path: Path) -> None:
    url = results.check_url("result_url", str(tmp_path / "results"))
    data = os.urandom(3 * results.CHUNK_BYTES + 5)
    artifact = results.store(url, "job-1", TOKEN, "0.npy", "application/x-npy", data)
    assert b"".join(results.read(url, artifact, "job-1")) == data
    assert artifact.size_bytes == len(data)
    assert artifact.url == f"job-1/{TOKEN}/0.npy"
    names = [path.name for path in (tmp_path / "results" / "job-1" / TOKEN).iterdir()]
    assert names == ["0.npy"], "no temporary file is left"


@pytest.mark.parametrize("offset_bytes", [0, 1, results.CHUNK_BYTES - 1, results.CHUNK_BYTES, results.CHUNK_BYTES + 7])
def test_a_file_is_read_from_an_offset_and_its_digest_is_of_all_of_it(offset_bytes: int, tmp_path: Path) -> None:
    url = results.check_url("result_url", f"{tmp_path}/results")
    data = os.urandom(results.CHUNK_BYTES + 7)
    artifact = results.store(url, "job-1", TOKEN, "0.npy", "application/x-npy", data)
    pieces = list(results.read(url, artifact, "job-1", offset_bytes))
    assert b"".join(pieces) == data[offset_bytes:]
    assert all(pieces), "an empty piece would end a download"
    artifact.sha256 = hashlib.sha256(b"other").digest()
    with pytest.raises(SourceCorrupt, match="SHA-256"):
        list(results.read(url, artifact, "job-1", offset_bytes))


@pytest.mark.parametrize("store", ["{}", "memory://{}"])
def test_attempts_do_not_touch_one_another(store: str, tmp_path: Path) -> None:
    url = results.check_url("result_url", store.format(tmp_path))
    accepted = results.store(url, "job-1", results.new_token(), "0.npy", "", b"accepted")
    late = [results.store(url, "job-1", results.new_token(), "0.npy", "", b"late") for _ in range(3)]
    results.discard(url, "job-1", late[0].url.split("/")[1])
    results.discard(url, "job-1", late[0].url.split("/")[1])
    assert b"".join(results.read(url, accepted, "job-1")) == b"accepted"
    results.sweep(url, Job(job_id="job-1", artifacts=[accepted]))
    assert b"".join(results.read(url, accepted, "job-1")) == b"accepted"
    for artifact in late:
        with pytest.raises(SourceCorrupt):
            list(results.read(url, artifact, "job-1"))


@pytest.mark.parametrize("store", ["{}", "memory://{}"])
def test_nothing_outlives_a_job_without_results(store: str, tmp_path: Path) -> None:
    url = results.check_url("result_url", store.format(tmp_path))
    left = results.store(url, "job-1", results.new_token(), "0.npy", "", b"of a dead attempt")
    results.sweep(url, Job(job_id="job-1"))
    results.sweep(url, Job(job_id="job-2"))
    with pytest.raises(SourceCorrupt):
        list(results.read(url, left, "job-1"))


def test_the_whole_may_be_moved(tmp_path: Path) -> None:
    """Also where an older journal has absolute names."""
    url = results.check_url("result_url", str(tmp_path / "before"))
    artifact = results.store(url, "job-1", TOKEN, "0.npy", "", b"data")
    older = Artifact(name="1.npy", url=f"{url}/job-1/1.npy", sha256=hashlib.sha256(b"older").digest())
    (tmp_path / "before" / "job-1" / "1.npy").write_bytes(b"older")
    assert b"".join(results.read(url, older, "job-1")) == b"older"
    (tmp_path / "before").rename(tmp_path / "after")
    url = results.check_url("result_url", str(tmp_path / "after"))
    assert b"".join(results.read(url, artifact, "job-1")) == b"data"
    assert b"".join(results.read(url, older, "job-1")) == b"older"


def test_new_folders_are_on_disk_with_their_parents(tmp_path: Path) -> None:
    """strace shows an fsync of each folder from the file up to the result URL's, after the rename."""
    program = (
        "import os, sys; from triptych.media import results\n"
        f"results.store('file://{tmp_path}', 'job-1', '{TOKEN}', '0.npy', '', b'data')\n"
    )
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-e", "trace=fsync,rename,renameat,renameat2", "-o", str(trace)]
    try:
        subprocess.run([*command, sys.executable, "-c", program], check=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    lines = trace.read_text().splitlines()
    renamed = next(index for index, line in enumerate(lines) if "rename" in line)
    synced = re.findall(r"fsync\(\d+<([^>]*)>", "\n".join(lines[renamed:]))
    assert synced == [f"{tmp_path}/job-1/{TOKEN}", f"{tmp_path}/job-1", str(tmp_path)]


def test_a_store_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    url = results.check_url("result_url", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            results.store(url, "job-1", TOKEN, "0.mp4", "", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "job-1" / TOKEN).iterdir()) == []


def test_a_full_store_is_told_from_a_broken_one() -> None:
    assert results.is_full(OSError(errno.ENOSPC, "no space"))
    assert not results.is_full(OSError(errno.EIO, "broken"))


def test_other_stores_work(tmp_path: Path) -> None:
    url = results.check_url("result_url", "memory://results")
    artifact = results.store(url, "job-1", TOKEN, "0.mp4", "video/mp4", b"film")
    assert b"".join(results.read(url, artifact, "job-1")) == b"film"


def test_a_changed_or_missing_file_is_corrupt(tmp_path: Path) -> None:
    url = results.check_url("result_url", str(tmp_path))
    artifact = results.store(url, "job-1", TOKEN, "0.mp4", "", b"film")
    file = tmp_path / "job-1" / TOKEN / "0.mp4"
    file.write_bytes(b"filn")
    with pytest.raises(SourceCorrupt, match="SHA-256"):
        list(results.read(url, artifact, "job-1"))
    file.unlink()
    with pytest.raises(SourceCorrupt, match="can't be read"):
        list(results.read(url, artifact, "job-1"))


def test_an_unwritable_url_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequest, match="result_url"):
        results.check_url("result_url", str(tmp_path / "file" / "below"))
    with pytest.raises(InvalidRequest, match="result_url"):
        results.check_url("result_url", "nosuchprotocol://x")


@pytest.mark.parametrize("store", ["{}", "memory://{}"])
def test_removing_takes_all_of_a_job_and_nothing_else(store: str, tmp_path: Path) -> None:
    url = results.check_url("result_url", store.format(tmp_path))
    earlier = results.check_url("result_url", store.format(tmp_path / "earlier"))
    gone = results.store(earlier, "job-1", TOKEN, "1.png", "", b"where results once went")
    gone.url = f"{earlier}/{gone.url}".replace(f"/{TOKEN}", "")
    older = Job(job_id="job-1", artifacts=[gone])
    results.store(url, "job-1", TOKEN, "0.png", "", b"of an attempt that was superseded")
    other = results.store(url, "job-10", TOKEN, "0.png", "", b"another's")
    results.remove(url, older)
    results.remove(url, older)
    assert b"".join(results.read(url, other, "job-10")) == b"another's"
    with pytest.raises(SourceCorrupt):
        list(results.read(earlier, Artifact(name="1.png", url=f"job-1/{TOKEN}/1.png", sha256=bytes(32)), "job-1"))
    folder = Path(url.removeprefix("file://"))
    assert store.startswith("memory") or sorted(path.name for path in folder.iterdir()) == ["earlier", "job-10"]


def test_removing_leaves_what_was_put_elsewhere_by_others(tmp_path: Path) -> None:
    file = tmp_path / "album" / "0.png"
    file.parent.mkdir()
    file.write_bytes(b"precious")
    results.remove(str(tmp_path / "results"), Job(job_id="job-1", artifacts=[Artifact(url=file.as_uri())]))
    assert file.read_bytes() == b"precious"


def test_a_place_that_can_hold_a_file_is_accepted_and_left_as_it_was(tmp_path: Path) -> None:
    results.check_store("result_url", results.check_url("result_url", str(tmp_path / "results")))
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.parametrize("url", ["memory://results", "http://127.0.0.1:9/results"])
def test_a_place_that_can_hold_no_file_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="result_url is"):
        results.check_store("result_url", url)


def test_a_folder_that_takes_no_files_is_refused() -> None:
    """Whoever asks, root too: the kernel keeps it empty."""
    with pytest.raises(InvalidRequest, match="written, read and removed"):
        results.check_store("result_url", "file:///proc/sys")
