"""Checks of requests that need no model: what they cost, and times that aren't."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from services.worker.running import Running
from triptych.errors import InvalidRequest
from triptych.model import parameters, trees
from triptych.model.description import Description
from triptych.model.inputs import resolve
from triptych.rings.ring import Claimed
from triptych.v1.dispatch_pb2 import Dispatch
from triptych.v1.job_pb2 import GenerationRequest, Media
from triptych.v1.model_pb2 import (
    INPUT_KIND_IMAGE,
    INPUT_KIND_NUMBER,
    INPUT_KIND_TEXT,
    InputDescription,
    ModelDescription,
)
from triptych.v1.ring_service_pb2 import Lease
from triptych_client.result_files import output_paths

MODEL = ModelDescription(
    inputs=[
        InputDescription(name="prompt", kind=INPUT_KIND_TEXT),
        *(InputDescription(name=f"scale_{number}", kind=INPUT_KIND_NUMBER) for number in range(50)),
    ]
)


def test_a_name_of_megabytes_is_refused_at_once() -> None:
    """To look for names like it takes a time that grows with its length, and the controller does nothing meanwhile."""
    request = GenerationRequest(prompt="a")
    request.parameters.fields["scale_" * 5_000_000].number_value = 1
    request.media.add(name="x" * 10_000_000, data=b"x")
    started_s = time.process_time()
    with pytest.raises(InvalidRequest):
        parameters.parse(trees.gather(request), Description(MODEL))
    with pytest.raises(InvalidRequest):
        resolve(request, MODEL)
    assert time.process_time() - started_s < 2.0


@pytest.mark.parametrize("seconds", [2**63 - 1, -(2**63), 1])
def test_a_workers_clock_ends_no_job(seconds: int) -> None:
    """Only the controller looks at a deadline: here it is ignored at any clock, however odd it is."""
    dispatch = Dispatch()
    dispatch.deadline_time.seconds, dispatch.deadline_time.nanos = seconds, 2**31 - 1
    assert not Running(Claimed(Lease(), dispatch), 1).should_stop()


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "\0", "", "prompt", "image/../../x"])
def test_media_are_named_by_inputs_and_never_by_paths(name: str) -> None:
    model = ModelDescription(inputs=[InputDescription(name="image", kind=INPUT_KIND_IMAGE)])
    with pytest.raises(InvalidRequest, match=r"media\.name"):
        resolve(GenerationRequest(media=[Media(name=name, data=b"x")]), model)


@pytest.mark.parametrize("name", ["../../x.mp4", "/etc/x.mp4", "..", "a.b/c", "x.\0", ".mp4/..", "x/.mp4"])
def test_files_of_results_are_named_by_who_asks_for_them(name: str) -> None:
    for path in output_paths(Path("/tmp/out/clip.mp4"), [name, "other.mp4"]):
        assert path.parent == Path("/tmp/out")
        assert path.name.startswith("clip-")
