"""What commands show: in a terminal of 80 columns, in a pipe, where only ASCII can be shown, and of hostile texts."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.clients.terminals import in_terminal
from tests.clients.test_cli import CLI, ENV, TIMEOUT_S, endpoint, triptych
from tests.clients.toy_controller import LATENTS, SEED
from triptych_client.terminal import visible

__all__ = ["endpoint"]

NARROW = {**ENV, "COLUMNS": "80"}
ASCII = [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.fixture(scope="module")
def jobs(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Ids by prompt."""
    found = {}
    for prompt in ("circle", "dead", "evil"):
        done = triptych("generate", prompt, "-o", tmp_path_factory.mktemp("out") / "a.mp4", "--endpoint", endpoint)
        found[prompt] = re.findall(r"^job (job-\d+), seed", done.stderr, re.MULTILINE)[0]
    return found


def test_the_job_and_its_seed_are_told_in_one_closing_line(endpoint: str, tmp_path: Path) -> None:
    shown = in_terminal("generate", "a circle", "-o", tmp_path / "a.mp4", "--endpoint", endpoint)
    assert shown.code == 0
    assert re.search(rf"^\s*job job-\d+, seed {SEED}\n{tmp_path}/a.mp4$", shown.text, re.MULTILINE)
    piped = triptych("generate", "a circle", "-o", tmp_path / "a.mp4", "--seed", 5, "--endpoint", endpoint)
    assert piped.stdout == f"{tmp_path}/a.mp4\n"
    assert re.fullmatch(r"job job-\d+, seed 5", piped.stderr.splitlines()[-1])


def test_a_pipe_gets_whole_lines_of_tabs_at_any_width(endpoint: str, jobs: dict[str, str]) -> None:
    def lines(*args: str) -> list[list[str]]:
        command = (*CLI, *args, "--endpoint", endpoint)
        done = subprocess.run(command, capture_output=True, text=True, env=NARROW, timeout=TIMEOUT_S, check=True)
        return [line.split("\t") for line in done.stdout.splitlines()]

    listed = lines("jobs", "--limit", "100")
    assert {len(row) for row in listed} == {7}
    assert set(jobs.values()) <= {row[0] for row in listed}
    (dead,) = lines("jobs", "--dead")
    assert dead[0] == jobs["dead"]
    assert dead[3] == "transformer 3: rank 3 was silent; transformer 5: rank 5 was silent"
    assert {row[0] for row in lines("status")} == {"fleet", "rings", "workers", "ways", "jobs"}
    assert ["inputs", "prompt", "text", "required", "What to make."] in lines("describe")


def test_a_job_has_the_shape_of_its_latents(endpoint: str, jobs: dict[str, str]) -> None:
    shown = triptych("jobs", jobs["circle"], "--endpoint", endpoint).stdout
    assert f"fact\tlatents\t{'x'.join(map(str, LATENTS))}\n" in shown


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_no_word_is_broken_in_a_terminal(endpoint: str, jobs: dict[str, str], columns: int) -> None:
    for args in (("status", "--once"), ("jobs",), ("jobs", "--dead"), ("describe",), ("jobs", jobs["dead"])):
        shown = in_terminal(*args, "--endpoint", endpoint, columns=columns)
        assert shown.code == 0
        assert max(map(len, shown.text.splitlines())) <= columns
        whole = {word for line in shown.text.splitlines() for word in line.split()}
        rows = [line.split("\t") for line in triptych(*args, "--endpoint", endpoint).stdout.splitlines()]
        told = {word for row in rows for cell in row[1:] for word in cell.replace("; ", " ").split()}
        if "left out, for want of width" not in shown.text:
            assert {word for word in told if len(word) > 5} <= whole, args
        assert jobs["dead"] in whole or args == ("describe",)


def test_one_job_is_shown_whole(endpoint: str, jobs: dict[str, str]) -> None:
    piped = triptych("jobs", jobs["circle"], "--endpoint", endpoint).stdout.splitlines()
    assert piped[0] == f"job\t{jobs['circle']}\tsucceeded"
    assert f"fact\tseed\t{SEED}" in piped
    assert any(line.startswith("files\t0\t0.mp4\t") for line in piped)
    shown = in_terminal("jobs", jobs["dead"], "--endpoint", endpoint, columns=80).text
    for words in (f"{jobs['dead']} · failed", "gave up after 2 attempts", "rank 3 was silent", str(SEED)):
        assert words in shown
    (told,) = json.loads(triptych("jobs", jobs["dead"], "--json", "--endpoint", endpoint).stdout)
    assert told["job_id"] == jobs["dead"]


def test_a_beginning_of_an_id_that_no_other_has_is_enough(endpoint: str, tmp_path: Path) -> None:
    def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
        return triptych(*args, "--endpoint", endpoint, cwd=tmp_path)

    found = json.loads(run("jobs", "--limit", "100", "--json").stdout)
    while len(found) < 11:  # the toy counts its jobs: job-1 also begins job-10's id
        assert run("generate", "a", "-o", "a.mp4").returncode == 0
        found = json.loads(run("jobs", "--limit", "100", "--json").stdout)
    for command in (("jobs",), ("cancel",), ("download",), ("watch",), ("jobs", "--dead", "--retry")):
        told = run(*command, "jo")
        assert told.returncode == 2
        assert re.fullmatch(r"triptych: job is 'jo'; accepted: more of the id: (job-\d+, ){5}… begin so\n", told.stderr)
        assert run(*command, "").stderr.startswith("triptych: job is ''; accepted: a job's id, or a beginning")
        assert run(*command, "job-77").stderr == "triptych: no job job-77\n"
    assert run("jobs", "job-1").stdout.startswith("job\tjob-1\t")  # an id is itself, whatever it begins
    assert run("generate", "long", "-o", "a.mp4").returncode == 0


def test_a_model_that_nobody_waits_for_is_said(endpoint: str) -> None:
    ended = triptych("jobs", "--discard-model", "abcdef012345", "--endpoint", endpoint)
    assert (ended.returncode, ended.stdout) == (0, "3 ended\n")
    none = triptych("jobs", "--discard-model", "f" * 12, "--endpoint", endpoint)
    assert (none.returncode, none.stdout) == (1, "")
    assert none.stderr == f"triptych: no job waits for a model whose digest begins with {'f' * 12}\n"


@pytest.mark.parametrize("env", ASCII, ids=["PYTHONIOENCODING", "LC_ALL"])
def test_where_only_ascii_can_be_shown_nothing_fails(
    endpoint: str, jobs: dict[str, str], env: dict[str, str], tmp_path: Path
) -> None:
    plain = {name: value for name, value in ENV.items() if not name.startswith(("LC_", "LANG"))} | env
    at = ("--endpoint", endpoint)
    for args in (
        ("status", "--once", *at),
        ("jobs", *at),
        ("jobs", jobs["dead"], *at),
        ("describe", *at),
        ("up", "--help"),
        ("doctor",),
        ("generate", "a ünit", "-o", str(tmp_path / "ü.mp4"), *at),
    ):
        done = subprocess.run((*CLI, *args), capture_output=True, env=plain, timeout=TIMEOUT_S, check=False)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
        shown = in_terminal(*args, env=plain)
        assert shown.code == 0, shown.text
        assert shown.text.isascii()
    assert os.listdir(tmp_path) == ["ü.mp4"]


def test_texts_of_others_reach_no_terminal_as_commands(endpoint: str, jobs: dict[str, str], tmp_path: Path) -> None:
    done = triptych("generate", "evil", "-o", tmp_path / "a.mp4", "--endpoint", endpoint)
    assert done.stderr.splitlines()[-1].endswith("[bold red]off[/bold red] second line \\u202egnp.exe\\x9b5n")
    for args in (("jobs",), ("jobs", jobs["evil"]), ("status", "--once"), ("watch", jobs["evil"])):
        shown = in_terminal(*args, "--endpoint", endpoint, columns=200)
        piped = triptych(*args, "--endpoint", endpoint)
        for text in (shown.text, piped.stdout + piped.stderr):
            assert "\\x1b]0;yours\\x07\\x1b[2J[bold red]off[/bold red] second line \\u202egnp.exe\\x9b5n" in text
            assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(text)
    wrong = triptych("generate", "a", "-o", "\x1b]0;a\x07.avi", "--endpoint", "\x1b[2J:1")
    assert "\x1b" not in wrong.stderr


@pytest.mark.parametrize("text", ["plain", "ünïcode 日本 🙂", "two  spaces", "‍zero width joiner"])
def test_what_is_harmless_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_a_reader_that_has_gone_and_a_full_disk(endpoint: str, jobs: dict[str, str]) -> None:
    assert jobs
    command = " ".join(CLI)
    gone = f"{command} jobs --endpoint {endpoint} | true; exit ${{PIPESTATUS[0]}}"
    full = f"{command} jobs --endpoint {endpoint} > /dev/full"
    closed = f"{command} cancel gone --endpoint {endpoint} 2>&-"
    for line, code, said in ((gone, 141, ""), (full, 1, "No space left on device\n"), (closed, 1, "")):
        done = subprocess.run(("bash", "-c", line), capture_output=True, text=True, env=ENV, timeout=60, check=False)
        assert done.returncode == code
        assert done.stderr.endswith(said)
        assert len(done.stderr.splitlines()) == bool(said)
