"""`triptych up --on ray` on a real Ray cluster of three nodes, one of which is killed under load."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.conftest import result
from tests.fleet.processes import wait_until
from triptych.errors import EXIT_CONFIGURATION
from triptych.stages.fake import expected_outputs
from triptych_client import Client
from triptych_client.request import build_request
from triptych_client.retry import RetryPolicy

JOBS = 30
WORKER_CPUS_OF_NODE = 3
"""One of the two nodes must have space for all workers."""
QUICK = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 5,
}
"""Ray's own defaults notice a dead node after a quarter of a minute."""
START_TIMEOUT_S = 120.0
READY = re.compile(r"the fleet is ready on (\S+);")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head, where no worker has space, and two nodes."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": QUICK})
    for _node in range(2):
        made.add_node(num_cpus=WORKER_CPUS_OF_NODE)
    yield made
    made.shutdown()


class Up:
    """`triptych up --on ray`, with what it says."""

    def __init__(self, cluster: Any, folder: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "triptych_client.cli", "up", "--on", "ray", "--ray-address", cluster.address]
        command += ["--state", str(folder / "state"), "--endpoint", "127.0.0.1:0", "--worker-timeout-s", "5"]
        self.said = ""
        self.process = subprocess.Popen(
            [*command, *flags], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def refused(self) -> str:
        """What it says where it ends by itself, because of its configuration."""
        self.said = (self.process.communicate(timeout=START_TIMEOUT_S)[0] or b"").decode(errors="replace")
        assert self.process.returncode == EXIT_CONFIGURATION, self.said
        return self.said

    def hears(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Wait until it has said this."""
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)

        def found() -> re.Match[str] | None:
            with selectors.DefaultSelector() as selector:
                selector.register(self.process.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
                selector.select(0.2)
            self.said += (self.process.stdout.read() or b"").decode(errors="replace")  # type: ignore[union-attr]
            assert self.process.poll() is None or pattern.search(self.said), self.said
            return pattern.search(self.said)

        wait_until(found, START_TIMEOUT_S, pattern.pattern)
        match = found()
        assert match is not None
        return match

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            self.said += (self.process.communicate()[0] or b"").decode(errors="replace")


def parents(pid: int) -> Iterator[int]:
    """Of a process, up to the first."""
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid


def node_of(cluster: Any, pid: int) -> Any:
    """The node on which a process runs."""
    above = set(parents(pid))
    (found,) = (
        node
        for node in cluster.list_all_nodes()
        if any(raylet.process.pid in above for raylet in node.all_processes["raylet"])
    )
    return found


def test_a_node_is_killed_under_load_and_nothing_is_lost(cluster: Any, tmp_path: Path) -> None:
    up = Up(cluster, tmp_path, "--model", str(tmp_path), "--fake-stage-seconds", "0.5", "--mover", "rpc")
    try:
        endpoint = up.hears(READY)[1]
        with Client(endpoint, RetryPolicy(total_s_max=60.0)) as client:
            requests = [
                build_request("anything", seed=seed, height=64, width=64, num_inference_steps=4, output_format="npy")
                for seed in range(JOBS)
            ]
            job_ids = [client.submit(request).job_id for request in requests]
            wait_until(lambda: client.get_job(job_ids[2]).artifacts, 60, "some jobs are done")
            before = {worker.info.process_id: worker.info.role for worker in client.get_fleet().workers}
            nodes = {pid: node_of(cluster, pid) for pid in before}
            assert len({id(node) for node in nodes.values()}) == 2, "the workers are on both nodes"
            victim = node_of(cluster, min(before, key=lambda pid: before[pid]))
            cluster.remove_node(victim, allow_graceful=False)
            for job_id, request in zip(job_ids, requests, strict=True):
                made = result(client, job_id, tmp_path)
                assert np.array_equal(made, expected_outputs(request)["images"][0])  # type: ignore[index]
            after = {worker.info.process_id: worker.info.role for worker in client.get_fleet().workers}
        assert sorted(after.values()) == sorted(before.values())
        assert any(pid not in before for pid in after)
    finally:
        code = up.stop()
    assert code == 0, up.said
    wait_until(lambda: not [pid for pid in after if Path(f"/proc/{pid}").exists()], 30, "no process is left")


def test_a_process_that_died_is_started_again_on_its_node(cluster: Any, tmp_path: Path) -> None:
    """By its actor's supervisor; and its actor by Ray."""
    up = Up(cluster, tmp_path, "--model", str(tmp_path), "--fake-stage-seconds", "0.1", "--mover", "rpc")
    try:
        with Client(up.hears(READY)[1], RetryPolicy(total_s_max=60.0)) as client:

            def workers() -> set[int]:
                return {worker.info.process_id for worker in client.get_fleet().workers}

            before = workers()
            victim, other, _third = sorted(before)
            os.kill(victim, signal.SIGKILL)
            os.kill(next(parents(other)), signal.SIGKILL)
            wait_until(lambda: len(workers()) == len(before) and not {victim, other} & workers(), 60, "both are back")
    finally:
        code = up.stop()
    assert code == 0, up.said


def test_what_a_process_refuses_is_said(cluster: Any, tmp_path: Path) -> None:
    flags = ("--model", str(tmp_path), "--fake-stage-seconds", "0.1", "--mover", "mooncake", "--mooncake", "rdma")
    said = Up(cluster, tmp_path, *flags).refused()
    assert re.search(r"^triptych: \w+-0: this machine has no RDMA device$", said, re.MULTILINE), said


def test_a_card_is_chosen_by_ray(cluster: Any, tmp_path: Path) -> None:
    flags = ("--model", str(tmp_path), "--fake-stage-seconds", "0.1", "--device", "cuda:3")
    assert "device is 'cuda:3'; accepted: cpu, cuda or cuda:0" in Up(cluster, tmp_path, *flags).refused()


def test_where_there_is_no_cluster(tmp_path: Path) -> None:
    command = ["-m", "triptych_client.cli", "up", "--on", "ray", "--ray-address", "here:x", "--model", str(tmp_path)]
    command += ["--fake-stage-seconds", "0.1", "--state", str(tmp_path / "state")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=START_TIMEOUT_S)
    assert done.returncode == EXIT_CONFIGURATION, done.stderr
    assert "ray_address is 'here:x'; accepted: the address of a Ray cluster that runs" in done.stderr
