"""What opens the fleet is nowhere to be read: not in logs, spans, job records or the journal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fleet.processes import wait_until
from tests.security.conftest import make_guarded
from tests.security.test_roles import client_of
from triptych.environment import ClientAccess
from triptych.errors import InvalidRequest, Unauthenticated
from triptych_client import Client
from triptych_client.retry import RetryPolicy


def test_tokens_are_in_no_log_span_or_record(tmp_path: Path) -> None:
    """After calls that were answered, refused and wrong; on disk there is the digest only."""
    guarded = make_guarded(tmp_path)
    wrong = "triptych_" + "Wr0ng" * 8
    with guarded.fleet:
        with client_of(guarded, "alice") as alice:
            alice.generate("a cat", tmp_path / "out.npy")
            with pytest.raises(InvalidRequest):
                alice.create_job("a cat", height=7, transformer_rank=99)
        address = guarded.fleet.client_addresses["controller"]
        access = ClientAccess(tls=str(guarded.anybody), token=wrong)
        with Client(address, RetryPolicy(total_s_max=60.0), access) as stranger, pytest.raises(Unauthenticated):
            stranger.get_fleet()
        trace = tmp_path / "trace.jsonl"
        wait_until(lambda: trace.exists() and b"CreateJob" in trace.read_bytes(), 60, "spans are on disk")
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "controller.log" for path in found)
    assert any(path.name == "journal.db" for path in found)
    for path in found:
        content = path.read_bytes()
        for token in (*guarded.tokens.values(), wrong, "Bearer"):
            assert token.encode() not in content, f"{token} in {path}"
