"""The steps of the Containerfile, in a Debian root in the place of its base; and a fleet of the image's user in it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import yaml

from tests import needs
from tests.bare import debian
from tests.fleet.processes import wait_until
from tests.image.containerfile import Stage, parse

ROOT = Path(__file__).parents[2]
ROLES = ("encoder", "transformer", "decoder")
FAKE = {"TRIPTYCH_FAKE_STAGE_SECONDS": "0.2"}
STEP_S = 400.0
WAIT_S = 100.0


class Machine:
    """A Debian root, and the variables of the stage that is made in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders = debian.copy(debian.find_or_make(), root)
        link = root / "usr/local/bin/python"  # Python's own images have one
        link.symlink_to("/usr/bin/python3")
        self.environment = {"PATH": f"/usr/local/bin:{debian.PATH}", "HOME": "/root"}

    def inside(self, command: Sequence[str], user: str, folder: str, variables: Mapping[str, str] = {}) -> list[str]:
        """A command line that runs another there."""
        moved = ["bash", "-c", 'cd "$1"; shift; exec "$@"', "bash", folder, *command]
        return debian.inside(self.root, self.folders, user, {**self.environment, **variables}, moved)


def build(stage: Stage, machine: Machine, others: Mapping[str, Path]) -> None:
    """Do a stage's steps. Files come from the project, through its ignore file, or from another stage."""
    folder = "/"
    for word, rest in stage.steps:
        if word == "WORKDIR":
            folder = rest
            (machine.root / folder.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "ENV":
            name, _, machine.environment[name] = rest.partition("=")
        elif word == "COPY":
            copy(rest.split(), machine.root, folder, others)
        else:
            done = subprocess.run(
                machine.inside(["sh", "-c", rest], "0:0", folder),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=STEP_S,
            )
            assert done.returncode == 0, f"RUN {rest}\n{done.stdout}"


def copy(words: list[str], root: Path, folder: str, others: Mapping[str, Path]) -> None:
    source = ROOT
    if words[0].startswith("--from="):
        source = others[words.pop(0).removeprefix("--from=")]
    *names, target = words
    for name in names:
        if source is ROOT:
            assert f"!{name}" in (ROOT / ".dockerignore").read_text().splitlines(), f"{name} is ignored"
        found = source / name.lstrip("/")
        into = root / (Path(folder) / target).as_posix().lstrip("/")
        if found.is_dir():
            shutil.copytree(found, into, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(found, into / found.name if target.endswith("/") else into)


@pytest.fixture(scope="module")
def image() -> Iterator[tuple[Machine, Stage]]:
    if os.geteuid() or shutil.which("debootstrap") is None:
        needs.skip("a Debian root takes root, and debootstrap")
    first, last = parse((ROOT / "Containerfile").read_text(), {"EXTRAS": "fleet,postgres"})
    assert first.base == last.base == f"python:3.11-slim-{debian.RELEASE}"
    with tempfile.TemporaryDirectory(prefix="triptych-image-") as folder:
        building = Machine(Path(folder) / "build")
        build(first, building, {})
        machine = Machine(Path(folder) / "image")
        build(last, machine, {first.name: building.root})
        shutil.rmtree(building.root)
        yield machine, last


def test_the_image_is_run_by_nobody_who_matters_and_has_no_compiler(image: tuple[Machine, Stage]) -> None:
    machine, stage = image
    assert stage.user.split(":")[0] not in ("0", "root")
    assert stage.user in "".join(line.split(":")[2] + ":10001" for line in users(machine) if "triptych" in line)
    for tool in ("gcc", "cc", "g++", "make"):
        assert not list((machine.root / "opt/triptych").rglob(tool)), tool
    assert not any(step for word, step in stage.steps if word == "RUN" and ("build-essential" in step or "gcc" in step))


def users(machine: Machine) -> list[str]:
    return (machine.root / "etc/passwd").read_text().splitlines()


def test_the_four_processes_do_a_job_and_say_that_they_are_healthy(image: tuple[Machine, Stage]) -> None:
    """In one set of namespaces, as one pod would have it; each with a port of its own, since they share a network."""
    machine, stage = image
    assert stage.command == ["python", "-P", "-m", "triptych_services.controller"]
    ports = {"controller": 17070, **{role: 17071 + number for number, role in enumerate(ROLES)}}
    lines = ["set -e"]
    for role, port in ports.items():
        settings = f"TRIPTYCH_ADDRESS=0.0.0.0:{port} TRIPTYCH_ADVERTISE_HOST=127.0.0.1"
        settings = settings.split()[0] if role == "controller" else f"{settings} TRIPTYCH_CONTROLLER=127.0.0.1:17070"
        lines.append(f"{settings} {' '.join(stage.command[:-1])} triptych_services.{role} > /tmp/{role} 2>&1 &")
    lines.append("touch /tmp/up; wait")
    script = machine.root / "tmp/fleet"
    script.write_text("\n".join(lines))
    command = machine.inside(["bash", "/tmp/fleet"], stage.user, stage.folder, {**FAKE, "HOME": stage.folder})
    with subprocess.Popen(command, start_new_session=True) as fleet:
        try:
            pid = first_child(fleet.pid)
            logs = {role: machine.root / "tmp" / role for role in ports}
            for role, log in logs.items():
                wait_until(lambda log=log: log.exists() and "READY " in log.read_text(), WAIT_S, f"{role} is ready")
            for role, port in ports.items():
                endpoint = ["--endpoint", f"127.0.0.1:{port}"]
                assert enter(machine, stage, pid, [*stage.health[:2], *endpoint]) == "SERVING", role
            made = ["triptych", "generate", "a cat", *("--endpoint", "127.0.0.1:17070"), "-o", "/tmp/cat.png"]
            assert enter(machine, stage, pid, made) == "/tmp/cat.png"
            assert (machine.root / "tmp/cat.png").read_bytes().startswith(b"\x89PNG")
        finally:
            os.killpg(fleet.pid, signal.SIGKILL)


def first_child(pid: int) -> int:
    """The process that is 1 in the namespaces that `pid` has made."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    wait_until(lambda: path.read_text().split(), WAIT_S, "the namespaces are there")
    return int(path.read_text().split()[0])


def enter(machine: Machine, stage: Stage, pid: int, command: Sequence[str]) -> str:
    """Run a command of the image's user beside the fleet; what it prints."""
    variables = [f"{name}={value}" for name, value in {**machine.environment, "HOME": stage.folder}.items()]
    chroot = ["chroot", f"--userspec={stage.user}", str(machine.root), "env", "-i", *variables]
    done = subprocess.run(
        ["nsenter", "--mount", "--pid", "--ipc", f"--target={pid}", *chroot, *command],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_compose_is_as_the_image_is(image: tuple[Machine, Stage]) -> None:
    _machine, stage = image
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert set(services) == {"controller", *ROLES}
    for role, service in services.items():
        assert service["command"] == [*stage.command[:-1], f"triptych_services.{role}"]
        assert service["ipc"] == ("shareable" if role == "controller" else "service:controller"), "one /dev/shm for all"
        if role != "controller":
            settings = service["environment"]
            assert settings["TRIPTYCH_ADVERTISE_HOST"] == role
            assert settings["TRIPTYCH_CONTROLLER"].endswith(stage.environment["TRIPTYCH_ADDRESS"].rpartition(":")[2])
