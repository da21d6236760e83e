"""grpcurl, the real binary, needs nothing but the addresses: every process explains itself by reflection."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from tests.fleet.processes import Fleet

GRPCURL = Path(sys.executable).parent / "grpcurl"
TIMEOUT_S = 120.0

SERVICES = {
    "controller": {"GenerationService", "FileService", "FleetService", "RingService", "externalscaler.ExternalScaler"},
    "encoder-0": {"WorkerService", "EncoderService"},
    "transformer-0": {"WorkerService"},
    "decoder-0": {"WorkerService"},
}
REQUEST = {
    "prompt": "a big red circle",
    "height": 32,
    "width": 64,
    "num_frames": 5,
    "num_inference_steps": 4,
    "output_format": "png",
    "preview_every_steps": 1,
}


def run(*arguments: str, data: object = None) -> subprocess.CompletedProcess[str]:
    flags = ["-plaintext", *(("-d", json.dumps(data)) if data is not None else ())]
    command = [str(GRPCURL), *flags, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def grpcurl(*arguments: str, data: object = None) -> str:
    done = run(*arguments, data=data)
    assert done.returncode == 0, done.stderr
    return done.stdout


def messages(text: str) -> list[dict[str, Any]]:
    """The JSON objects of a stream, as grpcurl prints them one after the other."""
    decoder, found, text = json.JSONDecoder(), [], text.strip()
    while text:
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:].strip()
    return found


@pytest.mark.parametrize("name", SERVICES)
def test_every_process_lists_its_services_and_is_healthy(name: str, wan_fleet: Fleet) -> None:
    address = wan_fleet.addresses[name]
    listed = set(grpcurl(address, "list").split())
    standard = {"grpc.health.v1.Health", *(f"grpc.reflection.{v}.ServerReflection" for v in ("v1", "v1alpha"))}
    own = {service if "." in service else f"triptych.v1.{service}" for service in SERVICES[name]}
    assert listed == own | standard
    for service in ("", *sorted(own)):
        answer = grpcurl(address, "grpc.health.v1.Health/Check", data={"service": service})
        assert json.loads(answer) == {"status": "SERVING"}


def test_describe_shows_the_contract(wan_fleet: Fleet) -> None:
    service = grpcurl(wan_fleet.endpoint, "describe", "triptych.v1.GenerationService")
    for method in ("CreateJob", "GetJob", "ListJobs", "WatchJob", "CancelJob", "DownloadResult", "DescribeModel"):
        assert f"rpc {method} (" in service
    message = grpcurl(wan_fleet.endpoint, "describe", ".triptych.v1.GenerationRequest")
    assert "string prompt = 1;" in message
    assert "google.protobuf.Struct parameters" in message


def test_a_job_from_its_creation_to_its_file(wan_fleet: Fleet) -> None:
    service = "triptych.v1.GenerationService"
    job = json.loads(grpcurl(wan_fleet.endpoint, f"{service}/CreateJob", data={"request": REQUEST}))["job"]
    assert job["state"] == "JOB_STATE_QUEUED"
    key = {"job_id": job["job_id"]}
    updates = messages(grpcurl(wan_fleet.endpoint, f"{service}/WatchJob", data=key))
    assert updates[-1]["job"]["state"] == "JOB_STATE_SUCCEEDED"
    assert json.loads(grpcurl(wan_fleet.endpoint, f"{service}/GetJob", data=key)) == {"job": updates[-1]["job"]}
    pieces = messages(grpcurl(wan_fleet.endpoint, f"{service}/DownloadResult", data=key))
    assert pieces[0]["artifact"]["media_type"] == "image/png"
    file = b"".join(base64.b64decode(piece.get("chunk", "")) for piece in pieces)
    assert len(file) == int(pieces[0]["artifact"]["size_bytes"])
    assert PIL.Image.open(io.BytesIO(file)).size == (64, 32)


def test_the_fleet_and_its_rings_can_be_looked_at(wan_fleet: Fleet) -> None:
    fleet = json.loads(grpcurl(wan_fleet.endpoint, "triptych.v1.FleetService/GetFleet", data={}))
    assert {worker["info"]["role"] for worker in fleet["workers"]} == {
        "ROLE_ENCODER",
        "ROLE_TRANSFORMER",
        "ROLE_DECODER",
    }
    assert [ring["ring"] for ring in fleet["rings"]] == ["RING_REQUEST", "RING_PHASE1", "RING_PHASE2"]
    slots = json.loads(grpcurl(wan_fleet.endpoint, "triptych.v1.RingService/ListSlots", data={"ring": "RING_REQUEST"}))[
        "slots"
    ]
    assert len(slots) == fleet["rings"][0]["slot_count"]
    worker = json.loads(grpcurl(wan_fleet.addresses["decoder-0"], "triptych.v1.WorkerService/GetWorker", data={}))
    assert worker["worker"]["info"]["role"] == "ROLE_DECODER"


@pytest.mark.parametrize(
    ("method", "data", "code", "words"),
    [
        ("CreateJob", {"request": REQUEST | {"height": 33}}, "InvalidArgument", ["height", "33", "multiples of 8"]),
        ("CreateJob", {"request": REQUEST | {"prompt": ""}}, "InvalidArgument", ["prompt", "''", "not empty"]),
        ("ListJobs", {"page_size": -1}, "InvalidArgument", ["page_size", "-1", "1 to 1000"]),
        ("GetJob", {"job_id": "job-of-nobody"}, "NotFound", ["job-of-nobody"]),
    ],
)
def test_an_error_says_what_is_wrong(
    method: str, data: dict[str, Any], code: str, words: list[str], wan_fleet: Fleet
) -> None:
    done = run(wan_fleet.endpoint, f"triptych.v1.GenerationService/{method}", data=data)
    assert done.returncode != 0
    assert f"Code: {code}" in done.stderr
    (message,) = [line for line in done.stderr.splitlines() if "Message:" in line]
    assert [word for word in words if word not in message] == []
