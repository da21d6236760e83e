"""A process that runs a role together with a worker, which leads it; `group` says how they talk.

    python -P -m services.worker.group_member RANK SIZE RENDEZVOUS TIMEOUT_S -- SETTINGS…

Any error that isn't the job's own ends the process, and with it the leader.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import BinaryIO

from triptych import telemetry
from triptych.errors import TriptychError, WorkerBroken
from triptych.roles import role_name
from triptych.stages import AnyStage, Place
from triptych.transport import calls
from triptych.v1.dispatch_pb2 import ROLE_TRANSFORMER

from .group import CANCELLED, GO_ON, JOB, JOB_LENGTH_BYTES, LOADED, how_ended
from .process import load_config, load_stage

log = logging.getLogger(__name__)


def main() -> None:
    """Load the stage and serve the leader until it ends."""
    rank, size, rendezvous, timeout_s, _, *settings = sys.argv[1:]
    place = Place(int(rank), int(size), rendezvous, float(timeout_s))
    source, sink = _take_over_pipes()
    telemetry.setup_logging(role_name(ROLE_TRANSFORMER))
    config = load_config(settings)
    stage, _model = load_stage(ROLE_TRANSFORMER, config, place)
    _say(sink, LOADED)
    device = config.device_names[place.rank]
    while frame := source.read(len(JOB)):
        if frame != JOB:
            raise WorkerBroken(f"its leader said {frame!r} where a job was expected")
        _run(stage, source, sink, device)


def _take_over_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output for the leader alone: what libraries print goes to the log."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return source, sink


def _run(stage: AnyStage, source: BinaryIO, sink: BinaryIO, device: str) -> None:
    size_bytes = int.from_bytes(_exactly(source, JOB_LENGTH_BYTES), "little")
    inputs = calls.values_in(_exactly(source, size_bytes), device)

    def cancelled() -> bool:
        answer = _exactly(source, 1)
        if answer not in (GO_ON, CANCELLED):
            raise WorkerBroken(f"its leader said {answer!r} where it was asked about a cancellation")
        return answer == CANCELLED

    error: TriptychError | None = None
    try:
        stage.run(inputs, lambda _step: None, cancelled)
    except WorkerBroken:
        raise
    except TriptychError as raised:
        error = raised
    _say(sink, how_ended(error))


def _exactly(source: BinaryIO, size_bytes: int) -> bytes:
    content = source.read(size_bytes)
    if len(content) < size_bytes:
        raise WorkerBroken("its leader has ended")
    return content


def _say(sink: BinaryIO, word: str) -> None:
    sink.write(f"{word}\n".encode())
    sink.flush()


if __name__ == "__main__":
    main()
