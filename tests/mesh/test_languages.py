"""docs/clients.md, command by command: grpcurl, Node and Go against a fleet in the clear and a guarded one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests import needs
from tests.documents.extract import ROOT, commands
from tests.fleet.processes import Fleet
from tests.security.conftest import Guarded, make_guarded
from triptych.stages.fake import expected_outputs
from triptych_client.request import build_request

PAGE = ROOT / "docs/clients.md"
CLEAR, GUARDED = "127.0.0.1:7070", "127.0.0.1:7171"
"""The addresses that the page has."""
TIMEOUT_S = 200.0
PARTS = ("protos", "third_party", "docs/service_config.json", "clients/node", "clients/go")
CAMEL = """
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';
const loaded = loader.loadSync('triptych/v1/generation_service.proto', {includeDirs: ['protos', 'third_party']});
const { triptych } = grpc.loadPackageDefinition(loaded);
const client = new triptych.v1.GenerationService(process.argv[2], grpc.credentials.createInsecure());
client.GetJob({ job_id: 'job-1' }, (error) => console.log(error.code, error.details));
"""
"""What somebody writes who knows the contract and not the loader."""


@dataclass(frozen=True)
class Desk:
    """A copy of what the page needs, and the two fleets."""

    folder: Path
    clear: str
    guarded: str

    def type(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run one of the page's commands, at the fleets' own addresses."""
        command = command.replace(CLEAR, self.clear).replace(GUARDED, self.guarded)
        scripts = Path(sys.executable).parent
        environment = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}"}
        return subprocess.run(
            command, shell=True, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
        )


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    made = make_guarded(tmp_path_factory.mktemp("secured"))
    with made.fleet:
        yield made


@pytest.fixture(scope="module")
def desk(mesh_fleet: Fleet, secured: Guarded, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    for part in PARTS:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("node_modules"))
        else:
            shutil.copy(ROOT / part, folder / part)
    shutil.copytree(secured.anybody, folder / "anybody")
    (folder / "alice.token").write_text(secured.tokens["alice"] + "\n")
    return Desk(folder, mesh_fleet.endpoint, secured.fleet.client_addresses["controller"])


def under(heading: str) -> list[str]:
    """The commands of one of the page's sections."""
    (section,) = [part for part in PAGE.read_text().split("\n## ") if part.startswith(f"{heading}\n")]
    return [command.text for command in commands(section)]


def is_right(file: Path) -> bool:
    request = build_request("a circle", height=64, width=64, seed=1, output_format="npy")
    (expected,) = np.asarray(expected_outputs(request)["images"])
    return np.array_equal(np.asarray(PIL.Image.open(file)), expected)


@pytest.mark.parametrize(("heading", "tool"), [("Node", "npm"), ("Go", "protoc-gen-go-grpc")])
def test_an_example_creates_watches_and_downloads(heading: str, tool: str, desk: Desk) -> None:
    if not shutil.which(tool):
        needs.skip(f"{tool} is missing")
    first, *runs = under(heading)
    made = desk.type(first)
    assert made.returncode == 0, made.stderr
    assert len(runs) == 2, "in the clear, and with a token"
    for run in runs:
        (desk.folder / "circle.png").unlink(missing_ok=True)
        done = desk.type(run)
        assert done.returncode == 0, done.stderr
        assert "JOB_STATE_DENOISING" in done.stdout
        assert is_right(desk.folder / "circle.png")
    refused = desk.type(runs[0].replace('"a circle"', '""'))
    assert refused.returncode == 1
    assert "error: INVALID_REQUEST prompt accepted: text that is not empty" in refused.stderr
    nobody = desk.type(runs[1].replace("alice.token", "/dev/null"))
    assert "error: UNAUTHENTICATED" in nobody.stderr, nobody.stderr


def test_a_name_in_the_wrong_case_is_found_out(desk: Desk) -> None:
    if not shutil.which("npm"):
        needs.skip("npm is missing")
    if not (desk.folder / "clients/node/node_modules").is_dir():
        assert desk.type(under("Node")[0]).returncode == 0
    (desk.folder / "clients/node/camel.js").write_text(CAMEL)
    done = desk.type(f"node clients/node/camel.js {CLEAR}")
    assert done.stdout.startswith("3 job_id is ''; accepted: a value"), done.stderr
    assert "keepCase: true" in done.stdout
    assert done.stdout[2:].strip().rstrip(")") in " ".join(PAGE.read_text().split()), "the page quotes it"


def test_grpcurl_with_and_without_a_token(desk: Desk) -> None:
    listed, created = map(desk.type, under("grpcurl"))
    assert "triptych.v1.GenerationService.CreateJob" in listed.stdout, listed.stderr
    assert '"state": "JOB_STATE_QUEUED"' in created.stdout, created.stderr
