"""`triptych certs`, `triptych tokens`, and the flags by which commands prove who calls."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.security.conftest import Guarded
from triptych.errors import InvalidRequest
from triptych.security.certificates import Certificates
from triptych_client import FleetPlan

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "clients")))}


def triptych(*args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "triptych_client.cli", *map(str, args))
    return subprocess.run(command, capture_output=True, text=True, env={**ENV, **env}, timeout=60, check=False)


def test_certs_init_and_renew(tmp_path: Path) -> None:
    certs = tmp_path / "certs"
    assert triptych("certs", "init", certs, "--host", "node-1", "--host", "10.0.0.7").returncode == 0
    made = Certificates(certs / "encoder")
    again = triptych("certs", "init", certs)
    assert (again.returncode, again.stdout) == (2, "")
    assert "triptych certs renew" in again.stderr
    assert triptych("certs", "renew", certs, "--days", "30").returncode == 0
    assert made.refresh() == 1
    for arguments in (("renew", tmp_path / "nothing"), ("init", tmp_path / "x", "--days", "0")):
        assert triptych("certs", *arguments).returncode == 2


def test_tokens_add_list_remove(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    added = triptych(
        "tokens", "add", "alice", "--scope", "submit", "--scope", "read", "--jobs-max", 5, "--tokens", file
    )
    assert added.stdout.startswith("triptych_")
    listed = triptych("tokens", "list", "--tokens", file).stdout
    assert listed == "alice\tread, submit\t5 jobs\n"
    assert added.stdout.strip() not in file.read_text()
    assert triptych("tokens", "add", "alice", "--scope", "read", "--tokens", file).returncode == 2
    assert triptych("tokens", "remove", "alice", "--tokens", file).returncode == 0
    assert triptych("tokens", "list", "--tokens", file).stdout == ""


def test_commands_prove_who_calls(guarded: Guarded, tmp_path: Path) -> None:
    """By flags or by the environment; without either, in a sentence, nothing."""
    endpoint = ("--endpoint", guarded.fleet.client_addresses["controller"])
    file = tmp_path / "token"
    file.write_text(guarded.tokens["alice"])
    tls = ("--tls", guarded.anybody)
    assert triptych("jobs", *endpoint, *tls, "--token-file", file).returncode == 0
    assert triptych("jobs", *endpoint, *tls, TRIPTYCH_TOKEN=guarded.tokens["alice"]).returncode == 0
    assert triptych("jobs", *endpoint, TRIPTYCH_TLS=str(guarded.anybody), TRIPTYCH_TOKEN_FILE=str(file)).returncode == 0
    made = triptych("generate", "a cat", "-o", tmp_path / "out.npy", *endpoint, *tls, "--token-file", file)
    assert made.returncode == 0, made.stderr
    refused = triptych("jobs", *endpoint, *tls)
    assert refused.returncode == 1
    assert refused.stderr == (
        "triptych: the caller has to prove who it is, by a certificate with a role or a token, in the metadata "
        "'authorization' as 'Bearer …'\n"
    )
    missing = triptych("jobs", *endpoint, *tls, "--token-file", tmp_path / "nothing")
    assert missing.returncode == 2
    admin = triptych("jobs", "--endpoint", guarded.fleet.endpoint, "--tls", guarded.certs / "admin")
    assert admin.returncode == 0, admin.stderr


def test_up_gives_each_process_its_roles_certificate(tmp_path: Path) -> None:
    tmp = str(tmp_path)
    plan = FleetPlan(model=tmp, state=tmp_path, tls="certs", tokens="t.toml", client_address="127.0.0.1:7071")
    for spec in (plan.controller(), *plan.workers("127.0.0.1:1")):
        argv = list(spec.argv)
        assert argv[argv.index("--tls") + 1] == f"certs/{spec.name.partition('-')[0]}"
        assert argv[argv.index("--tokens") + 1] == "t.toml"
        assert ("--client-address" in argv) is (spec.name == "controller")
    with pytest.raises(InvalidRequest, match="tls"):
        FleetPlan(model=tmp, state=tmp_path, tokens="t.toml")


def test_no_process_of_a_fleet_finds_modules_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor what it starts: `-P` for itself, PYTHONSAFEPATH for others, and no empty entry in PYTHONPATH."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(("", str(ROOT), "", str(ROOT / "clients"), "")))
    plan = FleetPlan(model=str(tmp_path), state=tmp_path)
    for spec in (plan.controller(), *plan.workers("127.0.0.1:1")):
        assert spec.argv[:3] == (sys.executable, "-P", "-m")
        program = "import os, sys; assert not {'', os.getcwd()} & set(sys.path), sys.path"
        env = {**os.environ, **spec.env}
        for flags in (spec.argv[1:2], ()):
            subprocess.run((sys.executable, *flags, "-c", program), cwd=tmp_path, env=env, check=True, timeout=60)
