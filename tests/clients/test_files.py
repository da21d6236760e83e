"""No command writes over, or deletes, what it wasn't told to; what can't be written is told before the work."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.clients.test_cli import CLI, ENV, ROOT, TIMEOUT_S, endpoint, triptych
from tests.clients.toy_controller import ToyController
from triptych.errors import InvalidRequest
from triptych_client import AsyncClient
from triptych_client.result_files import PartFile, check_target, output_paths, spare_paths

__all__ = ["endpoint"]


def job_count(endpoint: str) -> int:
    return len(json.loads(triptych("jobs", "--limit", "1000", "--json", "--endpoint", endpoint).stdout))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_only_the_name_that_was_told_is_written(endpoint: str, tmp_path: Path) -> None:
    for name in ("UP.PNG", "a.preview.png", "UP.preview.png", "UP.png"):
        (tmp_path / name).write_bytes(b"somebody's")
    done = triptych("generate", "a", "-o", tmp_path / "UP.PNG", "--endpoint", endpoint)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/UP.PNG\n")
    found = content(tmp_path)
    assert found.pop("UP.PNG").startswith(b"film ")
    assert found == dict.fromkeys(("a.preview.png", "UP.preview.png", "UP.png"), b"somebody's")


FILES_IN_THE_WAY = [
    ("out.preview.png", ("--preview",), "preview is"),
    ("out-1.mp4", ("--num-outputs", "2"), "output is"),
]


@pytest.mark.parametrize(("name", "flags", "field"), FILES_IN_THE_WAY)
def test_a_derived_name_that_is_taken_is_told_before_the_work(
    endpoint: str, tmp_path: Path, name: str, flags: tuple[str, ...], field: str
) -> None:
    (tmp_path / name).write_bytes(b"somebody's")
    count = job_count(endpoint)
    done = triptych("generate", "a", "-o", tmp_path / "out.mp4", *flags, "--endpoint", endpoint)
    assert done.returncode == 2
    assert f"{field} '{tmp_path / name}'; accepted: another name: that is there already" in done.stderr
    assert job_count(endpoint) == count
    assert content(tmp_path) == {name: b"somebody's"}


def test_a_preview_goes_and_nothing_else(endpoint: str, tmp_path: Path) -> None:
    done = triptych("generate", "a", "-o", tmp_path / "out.mp4", "--preview", "--endpoint", endpoint)
    assert done.returncode == 0
    assert os.listdir(tmp_path) == ["out.mp4"]


def what_cannot_be_written(folder: Path) -> dict[str, Path]:
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "away.mp4").symlink_to("no folder/a.mp4")
    return {
        "name too long": folder / f"{'n' * 252}.mp4",
        "path too long": folder.joinpath(*["n" * 250] * 17, "a.mp4"),
        "a folder": folder / "folder.mp4",
        "a pipe": folder / "pipe.mp4",
        "a link to itself": folder / "loop.mp4",
        "a link to nowhere": folder / "away.mp4",
        "a file as a folder": folder / "file" / "a.mp4",
        "no such folder": folder / "none" / "a.mp4",
        "no folder of files": Path("/proc/a.mp4"),
    }


def test_what_cannot_be_written_is_told_before_the_work(endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"somebody's")
    cases, count = what_cannot_be_written(tmp_path), job_count(endpoint)
    before = sorted(os.listdir(tmp_path))
    for about, path in cases.items():
        with pytest.raises(InvalidRequest, match=r"^output is "):
            check_target(path)
        if about in ("name too long", "a pipe", "no folder of files"):
            done = triptych("generate", "a", "-o", path, "--endpoint", endpoint)
            assert done.returncode == 2, about
            assert done.stderr.startswith("triptych: output is "), about
            assert len(done.stderr.splitlines()) == 1
            assert triptych("download", "job-0", "-o", path, "--endpoint", endpoint).returncode == 2
    assert job_count(endpoint) == count
    assert sorted(os.listdir(tmp_path)) == before


def test_as_long_a_name_as_the_disk_takes(endpoint: str, tmp_path: Path) -> None:
    name = "n" * 251 + ".mp4"
    assert triptych("generate", "a", "-o", tmp_path / name, "--endpoint", endpoint).returncode == 0
    two = triptych("generate", "a", "-o", tmp_path / name, "--num-outputs", 2, "--endpoint", endpoint)
    assert two.returncode == 2
    assert os.listdir(tmp_path) == [name]
    (spare, _second) = spare_paths(tmp_path / name, ["0.mp4", "0.wav"], "job-0123456789")
    assert re.fullmatch(r"n{150}-0\.23456789\.mp4", spare.name)


def test_a_link_stays_and_its_file_is_written(endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out.mp4").symlink_to("real/film.mp4")
    assert triptych("generate", "a", "-o", tmp_path / "out.mp4", "--endpoint", endpoint).returncode == 0
    assert (tmp_path / "out.mp4").is_symlink()
    assert (tmp_path / "real" / "film.mp4").read_bytes().startswith(b"film ")


async def test_names_that_are_taken_meanwhile_keep_their_files_and_the_result(
    client: AsyncClient, tmp_path: Path
) -> None:
    done = await client.generate(
        "a",
        tmp_path / "out.mp4",
        num_outputs=2,
        on_update=lambda _update: (tmp_path / "out-1.mp4").write_bytes(b"somebody's"),
    )
    assert done.paths == (tmp_path / "out-0.mp4", tmp_path / f"out-1.{done.job.job_id[-8:]}.mp4")
    assert (tmp_path / "out-1.mp4").read_bytes() == b"somebody's"
    assert done.paths[1].read_bytes().startswith(b"film ")


async def test_a_suffix_that_says_another_format_than_the_one_asked_for(
    client: AsyncClient, controller: ToyController, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=r"accepted: a file name that ends in \.gif"):
        await client.generate("a", tmp_path / "out.mp4", output_format="gif")
    assert controller.create_count == 0


def test_downloads_write_what_was_told_or_a_name_of_their_own(endpoint: str, tmp_path: Path) -> None:
    assert triptych("generate", "a", "-o", tmp_path / "a.gif", "--endpoint", endpoint).returncode == 0
    (job,) = json.loads(triptych("jobs", "--limit", "1", "--json", "--endpoint", endpoint).stdout)
    download = ("download", job["job_id"], "--endpoint", endpoint)
    wrong = triptych(*download, "-o", "b.mp4", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "output is 'b.mp4'; accepted: a file name that ends in .gif, as the result is" in wrong.stderr
    assert triptych(*download, cwd=tmp_path).stdout == f"{job['job_id']}.gif\n"
    (tmp_path / f"{job['job_id']}.gif").write_bytes(b"somebody's")
    again = triptych(*download, cwd=tmp_path)
    assert again.returncode == 2
    assert "that is there already" in again.stderr
    told = triptych(*download, "-o", f"{job['job_id']}.gif", cwd=tmp_path)
    assert told.stdout == f"{job['job_id']}.gif\n"
    assert (tmp_path / f"{job['job_id']}.gif").read_bytes().startswith(b"film ")


def test_a_result_that_cannot_be_fetched_keeps_its_jobs_id(endpoint: str, tmp_path: Path) -> None:
    done = triptych("generate", "spoilt", "-o", tmp_path / "a.mp4", "--quiet", "--endpoint", endpoint)
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert re.fullmatch(rf"the job isn't lost; go on with: triptych download job-\d+ --endpoint {endpoint}", said[0])
    assert said[1].startswith("triptych: 0.mp4 came with another SHA-256")
    assert os.listdir(tmp_path) == []


def test_suffixes_of_a_controller_are_taken_over_only_where_they_are_some(tmp_path: Path) -> None:
    told = tmp_path / "UP.PNG"
    assert output_paths(told, ["0.png"]) == (told,)
    assert output_paths(told, ["0.wav"]) == (tmp_path / "UP.wav",)
    for name in ("0.\x1b[2J", f"0.{'x' * 300}", "0", "0.a b"):
        assert output_paths(told, [name]) == (told,)


def test_a_file_that_fails_leaves_nothing(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "a.mp4", overwrites=False)
    (tmp_path / "a.mp4").write_bytes(b"somebody's")
    with part:
        part.write(b"ours")
        with pytest.raises(FileExistsError):
            part.commit()
    assert content(tmp_path) == {"a.mp4": b"somebody's"}


def test_secrets_are_their_owners_only(tmp_path: Path) -> None:
    def shell(line: str) -> int:
        command = ("bash", "-c", f"umask 022; {' '.join(CLI)} {line}")
        done = subprocess.run(command, env=ENV, cwd=tmp_path, capture_output=True, timeout=TIMEOUT_S, check=False)
        return done.returncode

    assert shell("tokens add alice --scope read -o alice.token") == 0
    assert shell("tokens add bob --scope read > bob.token") == 0
    assert shell("certs init certs") == 0
    names = ["alice.token", "bob.token", "tokens.toml", *(str(p) for p in tmp_path.glob("certs/*/tls.key"))]
    assert len(names) == 10
    for name in names:
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600, name
    assert (tmp_path / "alice.token").read_text().startswith("triptych_")


def test_a_token_that_cannot_be_kept_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "alice.token").write_bytes(b"somebody's")
    add = ("tokens", "add", "alice", "--scope", "read")
    taken = triptych(*add, "-o", "alice.token", cwd=tmp_path)
    assert taken.returncode == 2
    assert "output is 'alice.token'; accepted: a name that is free, in a folder (File exists)" in taken.stderr
    line = f"{' '.join(CLI)} {' '.join(add)} > /dev/full"
    full = subprocess.run(("bash", "-c", line), env=ENV, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (full.returncode, full.stderr) == (1, "triptych: [Errno 28] No space left on device\n")
    assert triptych("tokens", "list", cwd=tmp_path).stdout == ""
    assert content(tmp_path) == {"alice.token": b"somebody's", "tokens.toml": b""}
    refused = triptych("tokens", "add", "../x", "--scope", "read", "-o", "x.token", cwd=tmp_path)
    assert refused.returncode == 2
    assert not (tmp_path / "x.token").exists()


def test_an_authority_is_made_beside_nothing_of_anybodys(tmp_path: Path) -> None:
    (tmp_path / "certs" / "client").mkdir(parents=True)
    (tmp_path / "certs" / "client" / "tls.key").write_bytes(b"somebody's")
    refused = triptych("certs", "init", "certs", cwd=tmp_path)
    assert refused.returncode == 2
    assert "certs/client" in refused.stderr
    assert os.listdir(tmp_path / "certs") == ["client"]
    assert (tmp_path / "certs" / "client" / "tls.key").read_bytes() == b"somebody's"


def test_backups_have_any_name_that_the_disk_takes(tmp_path: Path) -> None:
    (tmp_path / "state" / "results").mkdir(parents=True)
    sqlite3.connect(tmp_path / "state" / "journal.db").close()
    too_long = triptych("backup", "n" * 256, "--state", "state", cwd=tmp_path)
    assert too_long.returncode == 2
    inside = triptych("backup", "state/results/copy", "--state", "state", cwd=tmp_path)
    assert inside.returncode == 2
    assert os.listdir(tmp_path / "state" / "results") == []
    assert triptych("backup", "n" * 255, "--state", "state", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (("up", "--model", "some/model", "--state", "file/x"), "state is 'file/x'"),
        (("up", "--model", "some/model", "--state", "n" * 256), "state is 'nnn"),
        (("certs", "init", "file/x"), "folder is 'file/x'"),
        (("certs", "init", "n" * 256), "folder is 'nnn"),
        (("tokens", "add", "alice", "--scope", "read", "--tokens", "file/x"), "tokens is 'file/x'"),
        (("tokens", "add", "alice", "--scope", "read", "-o", "file/x"), "output is 'file/x'"),
    ],
)
def test_folders_that_cannot_be_made_are_bad_input(tmp_path: Path, command: tuple[str, ...], field: str) -> None:
    (tmp_path / "file").write_bytes(b"somebody's")
    done = triptych(*command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"triptych: {field}")
    assert len(done.stderr.splitlines()) == 1
    assert content(tmp_path) == {"file": b"somebody's"}


DOCUMENTED = ("certs/ca/tls.key", "anybody/ca.crt", "tokens.toml", "alice.token", "my-backup/journal.db", "my-state/x")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout of git")
@pytest.mark.parametrize("name", [*DOCUMENTED, "my-model/x", "state/journal.db", ".triptych/x", "trace.jsonl", "a.mp4"])
def test_what_the_documents_make_is_never_committed(name: str) -> None:
    command = ("git", "-C", str(ROOT), "-c", "safe.directory=*", "check-ignore", "--quiet", name)
    assert subprocess.run(command, check=False, timeout=TIMEOUT_S).returncode == 0
