"""A controller whose journal is damaged while it runs: it answers nothing more, and ends with a sentence."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from triptych.v1 import generation_service_pb2 as pb
from triptych.v1.generation_service_pb2_grpc import GenerationServiceStub

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0


def start(state: Path) -> subprocess.Popen[str]:
    command = (sys.executable, "-m", "services.controller", "--state", str(state), "--address", "127.0.0.1:0")
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_damage_ends_the_controller_and_is_found_at_its_next_start(tmp_path: Path) -> None:
    with start(tmp_path) as controller:
        assert controller.stdout is not None
        address = controller.stdout.readline().split()[1]
        with grpc.insecure_channel(address) as channel:
            stub = GenerationServiceStub(channel)
            stub.ListJobs(pb.ListJobsRequest(), timeout=WAIT_S)
            with closing(sqlite3.connect(tmp_path / "journal.db")) as db, db:
                db.execute("PRAGMA writable_schema = ON")
                db.execute("UPDATE sqlite_master SET rootpage = 1 << 30 WHERE name = 'jobs'")
                db.execute("PRAGMA schema_version = 4242")
            with pytest.raises(grpc.RpcError) as refused:
                stub.ListJobs(pb.ListJobsRequest(), timeout=WAIT_S)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        assert str(tmp_path) not in str(refused.value.details())
        _out, said = controller.communicate(timeout=WAIT_S)
    assert controller.returncode == 1
    assert said.splitlines()[-1].startswith("error: the journal can't be used")
    assert f"the journal in {tmp_path} can't be used" in said
    with start(tmp_path) as controller:
        _out, said = controller.communicate(timeout=WAIT_S)
    assert controller.returncode == 2
    assert "state is" in said.splitlines()[-1]
