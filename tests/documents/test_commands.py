"""Every command of the documents, as it is written, in a terminal; the examples of `--help` also into a pipe."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents.console import Console
from tests.documents.extract import DOCUMENTS, ROOT, Command, commands
from tests.documents.network import own_network
from triptych_client.cli import COMMANDS

TIMEOUT_S = 240.0
NO_DIGEST = "0" * 12
NOBODY_WAITS = f"no job waits for a model whose digest begins with {NO_DIGEST}"
UP, DEFAULT_ADDRESS = "triptych up ", "127.0.0.1:7070"
SERVERS = {UP: " serves on ", "python -P -m services.": "READY "}
"""How commands begin that stay, and what they show of each process when it serves."""
ELSEWHERE = {
    "MODEL=/models/wan FOLDER=/opt/triptych bash deploy/ssh/fleet.sh "
    "controller=node-1 encoder=node-1 transformer=node-2 transformer=node-3 decoder=node-1": "tests/hosts",
    "sbatch --export=ALL,MODEL=/models/wan deploy/slurm/fleet.sbatch": "it takes SLURM",
    "triptych up --on ray --model /models/wan --transformers 3 --device cuda --state /data/triptych": "tests/ray",
    "triptych up --model examples/shapes/model --parallel cfg --devices cpu,cpu": "tests/parallel",
    "make demo": "tests/bare",
    "make test": "CI's first line",
    "make test-rdma": "CI",
    "make test-chaos": "CI",
    "make test-chaos SEED=7": "hours of machine time; CI runs its own seeds",
    'make test-chaos CHAOS="--standby sqlite"': "minutes of machine time; make test-standby runs a shorter plan",
    "make test-chaos STAGES=real": "minutes of machine time",
    "make soak MINUTES=30": "half an hour",
    "make bench-recovery": "minutes of machine time",
    "python -m benchmarks.bench_gpu": "minutes of machine time, and a device",
    "make bench-rdma": "minutes in a virtual machine",
    "apt install spin gcc": "make test-model",
    "python -m pytest tests/model_checker": "make test-model",
    "python -m tests.model_checker.spin": "make test-model",
    'python -m tests.model_checker.spin "two deaths"': "make test-model",
    "python -m tests.fuzz.drive --runs 300000 --seed 2": "make test-fuzz runs fewer",
    "TRIPTYCH_FUZZ_SEED=7 TRIPTYCH_FUZZ_CALLS=60000 python -m pytest tests/fuzz/test_calls.py -s": "as above",
}
"""Commands that aren't run here, and what runs them or why nothing does."""


@pytest.fixture
def console(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Console]:
    """In a copy of what is under version control, as it is now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / "copy" / name)
    with own_network(), Console(tmp_path / "copy", is_terminal=getattr(request, "param", True)) as opened:
        yield opened


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_can_be_followed(document: str, console: Console) -> None:
    text = (ROOT / document).read_text()
    todo = [command for command in commands(text) if plain(command) not in ELSEWHERE]
    if not todo:
        pytest.skip("it has no commands that are run here")
    for command in todo:
        follow(console, document, command)
    for server, status in console.end_servers():
        assert status == 0, server


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("console", [True, False], ids=["terminal", "pipe"], indirect=True)
def test_the_example_of_each_help_runs(console: Console) -> None:
    for name in (*COMMANDS, "certs renew", "tokens list", "tokens remove", "tokens add"):
        status, shown = console.run(f"triptych {name} --help", TIMEOUT_S)
        assert status == 0, shown
        example = shown.splitlines()[-1].strip()
        assert f"{example} ".startswith(f"triptych {name} "), shown
        follow(console, f"triptych {name} --help", Command(0, example))
    for server, status in console.end_servers():
        assert status == 0, server


def follow(console: Console, document: str, command: Command) -> None:
    """Type one command, and look at how it ends."""
    where = f"{document}:{command.line}: {command.text}"
    if command.is_python:
        program = console.folder / "snippet.py"
        program.write_text(command.text)
        status, shown = console.run(f"python {program.name}", TIMEOUT_S)
    elif ready := next((ready for start, ready in SERVERS.items() if command.text.startswith(start)), ""):
        count = 1
        if command.text.startswith(UP):
            # A reader stops what has the address.
            taken = addresses(command.text)
            console.end_servers(lambda other: not taken.isdisjoint(addresses(other)))
            more = re.findall(r"--(?:encoders|transformers|decoders) (\d+)", command.text)
            count = 4 + sum(int(number) - 1 for number in more)
        console.serve(command.text, ready, count, TIMEOUT_S)
        return
    elif command.text.startswith("export "):
        name, _, value = command.text.removeprefix("export ").partition("=")
        console.environment[name] = value
        return
    else:
        status, shown = console.run(filled_in(console, command.text), TIMEOUT_S)
    if "DIGEST" in command.text:
        assert (status, NOBODY_WAITS in shown) == (1, True), f"{where}: {status}: {shown}"
        return
    assert status == 0, f"{where}: {status}: {shown}"
    assert "Traceback" not in shown, f"{where}: {shown}"


def addresses(command: str) -> set[str]:
    """Where a fleet serves."""
    named = set(re.findall(r"endpoint ([\d.]+:\d+)", command))
    return named if "--endpoint" in command else {*named, DEFAULT_ADDRESS}


def filled_in(console: Console, text: str) -> str:
    """`JOB` stands for a job's id that an earlier command has shown, `DIGEST` for a model that no job waits for."""
    text = re.sub(r"\bDIGEST\b", NO_DIGEST, text)
    if not re.search(r"\bJOB\b", text):
        return text
    (job_id, *_) = re.findall(r"\bjob-[0-9a-f]{32}\b", console.shown)
    return re.sub(r"\bJOB\b", job_id, text)


def test_what_is_left_out_is_in_a_document() -> None:
    written = {
        one.text.partition("  #")[0].strip() for name in DOCUMENTS for one in commands((ROOT / name).read_text())
    }
    assert ELSEWHERE.keys() - written == set()


def plain(command: Command) -> str:
    """A command without the comment behind it."""
    return command.text.partition("  #")[0].strip()
