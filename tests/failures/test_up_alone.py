"""`triptych up` whose reader has gone, and that is told twice to stop: no process is lost to either."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path

import psutil

from tests.clients.test_launcher import READY_S
from tests.clients.test_up import CLI, ENV, MODEL, STEPS_S, wait_for
from tests.fleet.processes import free_port, wait_until


def workers_of(up: psutil.Process) -> dict[int, str]:
    found = {}
    for child in up.children():
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):  # one that has just ended
            found[child.pid] = " ".join(child.cmdline())
    return found


def test_nobody_reads_what_it_says_and_it_is_told_twice_to_stop(tmp_path: Path) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    command = (*CLI, "up", "--model", str(MODEL), "--state", str(tmp_path / "state"), "--endpoint", endpoint)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENV) as up:
        wait_for(up, "the fleet is ready")
        assert up.stderr is not None
        up.stderr.close()
        process = psutil.Process(up.pid)
        before = workers_of(process)
        victim = next(pid for pid, line in before.items() if "services.decoder" in line)
        psutil.Process(victim).kill()
        wait_until(lambda: len(set(workers_of(process)) - set(before)) == 1, READY_S, "a new worker")
        assert set(before) - {victim} <= set(workers_of(process)), "the others go on"
        log = tmp_path / "state" / "logs" / "controller.log"
        wait_until(lambda: log.read_text().count("registered ROLE_DECODER") >= 2, STEPS_S, "it has registered")
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):  # nobody is at a terminal
            up.send_signal(number)
        assert up.wait(STEPS_S) == 0, "it drained"
