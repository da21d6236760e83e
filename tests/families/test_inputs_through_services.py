"""Inputs that only trees say, through four processes: what the same stages make in one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import models
from tests.fleet.processes import Fleet
from triptych.config import WorkerConfig
from triptych.errors import InvalidRequest
from triptych.stages.fake import expected_outputs
from triptych_client import Client
from triptych_client.fused import FusedModel
from triptych_client.request import build_request

FLAGS = ("--fake-stage-seconds", "0.05", "--mover", "rpc")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 24, 3), np.uint8))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of a fleet with stand-ins for stages."""
    folder = tmp_path_factory.mktemp("fleet")
    with Fleet(folder, "", worker_flags=FLAGS) as fleet, fleet.client() as opened:
        yield opened


def test_files_in_objects_tensors_and_seeds(client: Client, tmp_path: Path) -> None:
    conditions = [{"image": picture(1), "strength": 0.25}, {"image": picture(2)}]
    embeds = np.arange(8, dtype=np.float32).reshape(2, 4)
    fields: dict[str, Any] = {"seed": -3, "inputs": {"conditions": conditions, "embeds": embeds}}
    done = client.generate("a", tmp_path / "a.npy", **fields)
    expected: Any = expected_outputs(build_request("a", **fields))["images"]
    assert np.array_equal(np.load(done.paths[0]), expected[0])
    conditions.reverse()
    other = client.generate("a", tmp_path / "b.npy", **fields)
    assert not np.array_equal(np.load(other.paths[0]), expected[0]), "files stand in their order"


def test_a_broken_file_is_named_by_its_place(client: Client, tmp_path: Path) -> None:
    inputs = {"conditions": [{"image": picture(1)}, {"image": b"\x89PNG broken"}]}
    with pytest.raises(InvalidRequest, match=r"^inputs\.conditions\[1\]\.image is"):
        client.generate("a", tmp_path / "a.npy", inputs=inputs)


def test_a_large_tensor_goes_ahead_as_an_upload(client: Client, tmp_path: Path) -> None:
    embeds = np.random.default_rng(0).random((2**18 + 2**15, 4), np.float32)
    done = client.generate("a", tmp_path / "a.npy", seed=1, inputs={"embeds": embeds})
    expected: Any = expected_outputs(build_request("a", seed=1, inputs={"embeds": embeds}))["images"]
    assert np.array_equal(np.load(done.paths[0]), expected[0])


def test_seeds_and_a_schedulers_option_of_a_real_model(tmp_path: Path) -> None:
    folder = models.wan_t2v(tmp_path / "wan")
    fields: dict[str, Any] = {
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "num_inference_steps": 2,
        "num_outputs": 2,
        "seeds": [3, 9],
        "inputs": {"scheduler.flow_shift": 2.0},
    }
    request = build_request("a", output_format="npy", **fields)
    expected = FusedModel.load(WorkerConfig(model=folder)).generate(request, tmp_path / "expected.npy")
    with Fleet(tmp_path / "fleet", folder) as fleet, fleet.client() as client:
        done = client.generate("a", tmp_path / "a.npy", **fields)
    assert [path.read_bytes() for path in done.paths] == [path.read_bytes() for path in expected]
    assert len({path.read_bytes() for path in done.paths}) == 2
    assert (done.job.seed, list(done.job.seeds)) == (3, [3, 9])
