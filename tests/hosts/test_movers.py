"""Four hosts do what one does, to the bit, and no mover but those over the network is used."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.conftest import succeeded
from tests.fleet.processes import wait_until
from tests.hosts import handoff
from tests.hosts.hosts import HOSTS, Hosts, HostsFleet
from triptych.config import WorkerConfig
from triptych.limits import bytes_text
from triptych.media import encoding
from triptych.stages.fake import expected_outputs
from triptych.v1.job_pb2 import Job
from triptych_client import Client
from triptych_client.request import build_request

SHAPES = "examples/shapes/model"
PROMPT = "a big red circle moving right on a blue background"
JOBS = 3
SIDE = 1024
"""Of the fake stages' pictures: a room of 12.6 MB, as large videos' latents are."""
NETWORK_MOVERS = {"": {"mooncake/tcp"}, "mooncake": {"mooncake/tcp"}, "rpc": {"rpc/grpc"}}
"""What carries rooms, by the mover that is asked for."""
FETCHES = 2
"""Of a job: the encoder's room and the transformer's."""


def fake_job(client: Client, folder: Path, seed: int, side: int = SIDE) -> Job:
    """Have fake stages make a picture, and compare its bits."""
    request = build_request("anything", seed=seed, height=side, width=side, num_inference_steps=4, output_format="npy")
    job = succeeded(client, client.submit(request).job_id)
    (artifact,) = encoding.encode_outputs(expected_outputs(request), "npy", 16.0)
    made = client.download_result(job.job_id, folder / f"{job.job_id}.npy")
    assert hashlib.sha256(made.read_bytes()).digest() == hashlib.sha256(artifact.data).digest()
    return job


def found(fleet: HostsFleet, jobs: Sequence[Job]) -> list[handoff.HandOff]:
    """The jobs' hand-offs, once every process has written its spans."""

    def are_whole() -> bool:
        return all(handoff.of_job(fleet.trace_file, job).movers.total() == FETCHES for job in jobs)

    wait_until(are_whole, 30.0, "the spans are in the file")
    return [handoff.of_job(fleet.trace_file, job) for job in jobs]


@pytest.mark.needs_mooncake
@pytest.mark.parametrize("mover", NETWORK_MOVERS, ids=lambda mover: mover or "auto")
def test_rooms_cross_hosts_by_every_mover(hosts: Hosts, tmp_path: Path, measured: list[str], mover: str) -> None:
    flags = {name: ("--mover", mover) if mover and name != "controller" else () for name in HOSTS}
    with HostsFleet(hosts, tmp_path / "fleet", hosts.ip, flags_by_name=flags) as fleet, fleet.client() as client:
        fake_job(client, tmp_path, seed=0)  # connections are made, memory is touched
        before = hosts.sent_bytes()
        jobs = [fake_job(client, tmp_path, seed) for seed in range(1, 1 + JOBS)]
        sent = {name: count - before[name] for name, count in hosts.sent_bytes().items()}
        hand_offs = found(fleet, jobs)
        by_worker = [worker.status.fetch_count_by_mover for worker in client.get_fleet().workers]
    assert sum((one.movers for one in hand_offs), Counter()).keys() == NETWORK_MOVERS[mover]
    assert not any("local" in counts for counts in by_worker)
    room_bytes = sum(one.room_bytes for one in hand_offs)
    between = sent["encoder-0"] + sent["transformer-0"]
    assert room_bytes < between < 1.2 * room_bytes
    share = sum(one.seconds for one in hand_offs) / sum(one.job_s for one in hand_offs)
    measured.append(
        f"mover {mover or 'auto':<9} took {', '.join(NETWORK_MOVERS[mover])}: rooms {bytes_text(room_bytes / JOBS)} a "
        f"job; on the wire {between / room_bytes - 1:+.1%}, {bytes_text(between / JOBS)}; all hosts "
        f"{bytes_text(sum(sent.values()) / JOBS)}; hand-off {share:.1%} of a job's time"
    )


@pytest.mark.needs_mooncake
def test_a_model_gives_the_bits_of_one_host(hosts: Hosts, tmp_path: Path, measured: list[str]) -> None:
    from triptych_client.fused import FusedModel  # here, because it imports torch

    request = build_request(PROMPT, seed=1, num_inference_steps=4, output_format="mp4")
    with HostsFleet(hosts, tmp_path / "fleet", hosts.ip, model=SHAPES) as fleet, fleet.client() as client:
        job = succeeded(client, client.submit(request).job_id)
        across = client.download_result(job.job_id, tmp_path / "across.mp4").read_bytes()
        (hand_off,) = found(fleet, [job])
    model = FusedModel.load(WorkerConfig(model=SHAPES, threads=1))
    model.generate(request, tmp_path / "here.mp4")
    assert hashlib.sha256(across).hexdigest() == hashlib.sha256((tmp_path / "here.mp4").read_bytes()).hexdigest()
    assert set(hand_off.movers) == {"mooncake/tcp"}
    measured.append(
        f"the shapes model, mover auto: rooms {bytes_text(hand_off.room_bytes)} a job; "
        f"hand-off {hand_off.share:.1%} of its {hand_off.job_s:.2f} s"
    )
