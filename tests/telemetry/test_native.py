"""Lines of native libraries: records like all others, also the last ones of a process that crashes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.processes import Fleet
from triptych.telemetry.native_lines import record
from triptych_client.processes import last_words

NOTICE = "E1126 21:13:41.459743  7486 transfer_metadata.cpp:1098] Local segment descriptor not found"
CHILD = """
import logging, os, sys
from triptych import telemetry
telemetry.setup_logging("decoder")
logging.getLogger("ours").warning("a line")
os.write(2, {data!r})
{end}
"""


def test_a_line_of_glog_keeps_its_level_and_place() -> None:
    made: dict[str, Any] = json.loads(record(NOTICE, "decoder", 1.5))
    assert made == {
        "time": "1970-01-01T00:00:01.500Z",
        "level": "ERROR",
        "logger": "native",
        "service": "decoder",
        "message": "Local segment descriptor not found",
        "place": "transfer_metadata.cpp:1098",
    }
    assert json.loads(record("I0000 00:00:1.5 7 a.cc:1] x", "decoder", 0))["level"] == "WARNING", "no such time"
    assert json.loads(record('say "x"', "decoder", 0))["message"] == 'say "x"'


@pytest.mark.parametrize("end", ["", "os.abort()"], ids=["ends", "crashes"])
def test_what_is_written_to_descriptor_2_is_json(end: str) -> None:
    data = (NOTICE + "\n\nterminate called\n").encode() + b"\xff\n"
    command = (sys.executable, "-c", CHILD.format(end=end, data=data))
    done = subprocess.run(command, stderr=subprocess.PIPE, check=False, timeout=60)  # until its helper has ended
    records = [json.loads(line) for line in done.stderr.decode().splitlines()]
    assert sorted(one["message"] for one in records) == sorted(
        ["a line", "Local segment descriptor not found", "terminate called", "\ufffd"]
    )


def test_what_this_process_itself_says_at_its_end_stays_as_it_is(tmp_path: Path) -> None:
    command = (sys.executable, "-c", CHILD.format(end="print('error: one', file=sys.stderr)", data=b"two\n"))
    done = subprocess.run(command, stderr=subprocess.PIPE, check=False, timeout=60)
    assert b"error: one\n" in done.stderr
    log = tmp_path / "child.log"
    log.write_bytes(done.stderr)
    assert last_words(log) == "one"
    log.write_bytes(b"\n".join(line for line in done.stderr.splitlines() if not line.startswith(b"error")))
    assert last_words(log) == "two"


@pytest.mark.needs_mooncake
def test_each_line_of_a_healthy_fleet_is_json(tmp_path: Path) -> None:
    """With Mooncake, whose engine complains at each start; a stranger's handshake makes gRPC's core say something."""
    flags = ("--fake-stage-seconds", "0.2", "--mover", "mooncake")
    with Fleet(tmp_path / "fleet", "", worker_flags=flags) as fleet, fleet.client() as client:
        client.generate("a cat", tmp_path / "out.npy", height=32, width=32)
    logs = list((tmp_path / "fleet").glob("*.log"))
    assert len(logs) == 4
    records = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    assert any("Local segment descriptor" in one["message"] for one in records if one["logger"] == "native")
