"""The number of series doesn't grow with jobs, clients, workers, or with what callers make up."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import grpc
import pytest

from tests.fleet.processes import CONTROLLER, ROLES, Fleet, free_port
from tests.telemetry.pages import Page, scrape
from triptych.environment import ClientAccess
from triptych.errors import JobFailed
from triptych.security import tokens
from triptych.security.rules import RULES
from triptych_client import Client

CLIENTS = ("alice", "bob", "carol", "dave")
CALLS = "rpc_server_call_duration_seconds"


def use(fleet: Fleet, folder: Path, clients: Iterable[str], jobs: int) -> set[str]:
    """Clients' jobs, one of each client's fails, and calls of made-up methods. Returns the jobs' ids."""
    ids = set()
    for name in clients:
        with Client(fleet.endpoint, access=ClientAccess(token=(folder / name).read_text())) as client:
            for number in range(jobs):
                ids.add(client.generate("a cat", folder / f"{name}-{number}-of-{jobs}.npy").job.job_id)
            with pytest.raises(JobFailed):
                client.generate("a cat", folder / "no.npy", parameters={"refuse": True})
        with grpc.insecure_channel(fleet.endpoint) as channel:
            for number in range(jobs):
                with pytest.raises(grpc.RpcError):
                    channel.unary_unary(f"/made.up.by.{name}/Method{number}")(b"", timeout=20)
    return ids


def keys(page: Page, *, calls: bool) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """The series, of calls or all others."""
    return {key for key in page if key[0].startswith(CALLS) == calls}


def test_series_are_as_many_after_many_jobs_clients_and_workers(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    for role in ROLES:
        (tmp_path / role).write_text(tokens.add(file, f"{role}s", [role]))
    for name in CLIENTS:
        (tmp_path / name).write_text(tokens.add(file, name, ["submit", "read"]))
    ports = {CONTROLLER: free_port(), "transformer-0": free_port()}
    flags = {
        f"{role}-{number}": (
            "--tokens",
            str(file),
            "--token-file",
            str(tmp_path / role),
            "--fake-stage-seconds",
            "0.01",
        )
        for role in ROLES
        for number in range(3)
    }
    flags["transformer-0"] += ("--metrics-port", str(ports["transformer-0"]))
    with Fleet(
        tmp_path / "fleet",
        "",
        flags_by_name=flags,
        controller_flags=("--tokens", str(file), "--metrics-port", str(ports[CONTROLLER])),
    ) as fleet:
        with fleet.also("decoder-1"):
            ids = use(fleet, tmp_path, CLIENTS[:1], jobs=3)  # so many that each of two decoders may have had one
        before = {name: scrape(port) for name, port in ports.items()}
        with fleet.also("decoder-1"), fleet.also("encoder-1"), fleet.also("decoder-2"):
            ids |= use(fleet, tmp_path, CLIENTS, jobs=6)
        after = {name: scrape(port) for name, port in ports.items()}
    assert len(ids) == 27
    for name in ports:
        assert keys(after[name], calls=False) == keys(before[name], calls=False), name
        methods = {labels["rpc_method"] for _name, pairs in keys(after[name], calls=True) if (labels := dict(pairs))}
        health = {"grpc.health.v1.Health/Check", "grpc.health.v1.Health/Watch"}
        assert methods <= {path.removeprefix("/") for path in RULES} | health | {"_OTHER"}, name
        told = {text for _name, pairs in after[name] for _label, text in pairs if _name != "target_info"}
        assert not [text for text in told for secret in (*ids, *CLIENTS) if secret in text]
