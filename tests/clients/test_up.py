"""`triptych up` with the real services and the model that ships: ready, used, drained, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.fleet.processes import free_port

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "shapes" / "model"
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "clients"))), "COLUMNS": "200"}
CLI = (sys.executable, "-m", "triptych_client.cli")
STEPS_S = 120.0
SMALL = ("--height", "64", "--width", "64", "--num-frames", "5", "--num-inference-steps")


def triptych(*args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (*CLI, *map(str, args)), capture_output=True, text=True, env=ENV, timeout=STEPS_S, check=False
    )


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if words in line:
            return
    pytest.fail(f"{words!r} was never said: {seen}")


def arenas_of(pids: list[int]) -> list[Path]:
    return [arena for pid in pids for arena in Path("/dev/shm").glob(f"triptych-arena-{pid}-*")]


def test_a_fleet_from_start_to_drain(tmp_path: Path) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    command = (*CLI, "up", "--model", str(MODEL), "--state", str(tmp_path / "state"), "--endpoint", endpoint)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENV) as up:
        wait_for(up, f"waiting for encoder-0, transformer-0, decoder-0, which load {MODEL}")
        wait_for(up, f"the fleet is ready on {endpoint}")
        children = psutil.Process(up.pid).children()
        pids = [child.pid for child in children]
        fleet = json.loads(triptych("status", "--json", "--endpoint", endpoint).stdout)
        roles = {worker["info"]["role"] for worker in fleet["workers"]}
        assert roles == {"ROLE_ENCODER", "ROLE_TRANSFORMER", "ROLE_DECODER"}
        assert len(pids) == 4
        done = triptych("generate", "a circle", *SMALL, "2", "-o", tmp_path / "out.npy", "--endpoint", endpoint)
        assert (done.returncode, done.stdout) == (0, f"{tmp_path}/out.npy\n"), done.stderr
        told = re.fullmatch(r"job (job-[0-9a-f]{32}), seed (\d+)", done.stderr.splitlines()[-1])
        assert told is not None, done.stderr
        shown = triptych("jobs", told[1][:20], "--endpoint", endpoint)
        assert shown.stdout.startswith(f"job\t{told[1]}\tsucceeded\nfact\t")
        assert f"fact\tseed\t{told[2]}\n" in shown.stdout
        up.send_signal(signal.SIGINT)
        wait_for(up, "draining")
        assert up.wait(STEPS_S) == 0
        _gone, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    assert arenas_of(pids) == []
    assert sorted(path.name for path in (tmp_path / "state" / "logs").iterdir()) == [
        "controller.log",
        "decoder-0.log",
        "encoder-0.log",
        "transformer-0.log",
    ]


def test_ctrl_c_ends_an_embedded_fleet_and_its_job(tmp_path: Path) -> None:
    long = (*SMALL, "333", "--num-frames", "33")
    command = (*CLI, "generate", "a circle", *long, "--model", str(MODEL), "-o", str(tmp_path / "out.mp4"))
    env = {**ENV, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        wait_for(process, "denoising")
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        assert process.wait(STEPS_S) == 130
        _gone, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    assert arenas_of([child.pid for child in children]) == []
    assert list(tmp_path.glob("triptych-*")) == []
    assert not (tmp_path / "out.mp4").exists()
