"""The sample that starts a fleet over several hosts by ssh. What stands for ssh enters the host."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from pathlib import Path

from tests.fleet.processes import wait_until
from tests.hosts.hosts import FAKE, HOSTS, Hosts
from tests.hosts.test_movers import fake_job
from triptych_client import Client
from triptych_client.retry import RetryPolicy

SAMPLE = "deploy/ssh/fleet.sh"
PORT = 7100


def test_a_fleet_by_ssh(hosts: Hosts, tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    cases = "".join(f'{name}) exec {shlex.join(hosts.prefix(name))} sh -c "$2";;\n' for name in HOSTS)
    ssh.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}esac\n')
    ssh.chmod(0o755)
    environment = {**os.environ, "SSH": str(ssh), "MODEL": str(tmp_path), "PORT": str(PORT), "FLAGS": shlex.join(FAKE)}
    environment["CONTROLLER_FLAGS"] = shlex.join(["--state", str(tmp_path / "state")])
    processes = [f"{name.partition('-')[0]}={name}" for name in HOSTS]
    with (tmp_path / "log").open("w") as log:
        sample = subprocess.Popen(["bash", SAMPLE, *processes], env=environment, stdout=log, stderr=log)
    try:
        with Client(f"{hosts.ip('controller')}:{PORT}", RetryPolicy(total_s_max=60.0)) as client:
            wait_until(lambda: len(client.get_fleet().workers) == len(HOSTS) - 1, 60, "all workers are there")
            fake_job(client, tmp_path, seed=1, side=64)
        sample.send_signal(signal.SIGTERM)
        assert sample.wait(60) == 0, (tmp_path / "log").read_text()
    finally:
        sample.kill()
    assert (tmp_path / "log").read_text().count("worker is gone") == len(HOSTS) - 1, "workers leave before it does"
