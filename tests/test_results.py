"""Results at rest: whole or absent, and proved when read."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from triptych import results
from triptych.errors import InvalidRequest, SourceCorrupt
from triptych.v1.job_pb2 import Artifact, Job


def test_what_is_stored_is_read_back(tmp_path: Path) -> None:
    url = results.check_url("result_url", str(tmp_path / "results"))
    data = os.urandom(3 * results.CHUNK_BYTES + 5)
    artifact = results.store(url, "job-1", "0.npy", "application/x-npy", data)
    assert b"".join(results.read(artifact)) == data
    assert artifact.size_bytes == len(data)
    assert [path.name for path in (tmp_path / "results" / "job-1").iterdir()] == ["0.npy"], "no temporary file is left"


def test_storing_again_replaces_the_whole_file(tmp_path: Path) -> None:
    url = results.check_url("result_url", str(tmp_path))
    results.store(url, "job-1", "0.npy", "", b"first, and longer")
    artifact = results.store(url, "job-1", "0.npy", "", b"second")
    assert b"".join(results.read(artifact)) == b"second"


def test_a_store_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    url = results.check_url("result_url", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            results.store(url, "job-1", "0.mp4", "", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "job-1").iterdir()) == []


def test_a_full_store_is_told_from_a_broken_one() -> None:
    assert results.is_full(OSError(errno.ENOSPC, "no space"))
    assert not results.is_full(OSError(errno.EIO, "broken"))


def test_other_stores_work(tmp_path: Path) -> None:
    url = results.check_url("result_url", "memory://results")
    artifact = results.store(url, "job-1", "0.mp4", "video/mp4", b"film")
    assert artifact.url.startswith("memory://")
    assert b"".join(results.read(artifact)) == b"film"


def test_a_changed_or_missing_file_is_corrupt(tmp_path: Path) -> None:
    url = results.check_url("result_url", str(tmp_path))
    artifact = results.store(url, "job-1", "0.mp4", "", b"film")
    file = tmp_path / "job-1" / "0.mp4"
    file.write_bytes(b"filn")
    with pytest.raises(SourceCorrupt, match="SHA-256"):
        list(results.read(artifact))
    file.unlink()
    with pytest.raises(SourceCorrupt, match="can't be read"):
        list(results.read(artifact))


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
    job = Job(job_id="job-1", artifacts=[results.store(earlier, "job-1", "1.png", "", b"where results once went")])
    results.store(url, "job-1", "0.png", "", b"of an attempt that was superseded")
    other = results.store(url, "job-10", "0.png", "", b"another's")
    results.remove(url, job)
    results.remove(url, job)
    assert b"".join(results.read(other)) == b"another's"
    with pytest.raises(SourceCorrupt):
        list(results.read(job.artifacts[0]))
    folder = Path(url.removeprefix("file://"))
    assert store.startswith("memory") or sorted(path.name for path in folder.iterdir()) == ["earlier", "job-10"]


def test_removing_leaves_what_was_put_elsewhere_by_others(tmp_path: Path) -> None:
    file = tmp_path / "album" / "0.png"
    file.parent.mkdir()
    file.write_bytes(b"precious")
    results.remove(str(tmp_path / "results"), Job(job_id="job-1", artifacts=[Artifact(url=file.as_uri())]))
    assert file.read_bytes() == b"precious"
