"""`python -m tests.failures.short_of_memory MODEL`: each role of a model meets too little memory, and then works again.

A process of its own, because its address space is capped. One line of JSON for each role: see `main`.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from services.worker import memory_report
from services.worker.health import is_out_of_memory
from triptych.model.inputs import resolve
from triptych.roles import ROLES
from triptych.stages.describe import describe
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.v1.job_pb2 import GenerationRequest

SMALL, LARGE = (32, 64, 5), (256, 256, 29)
"""Height, width and frames of a job that fits, and of one that doesn't."""
LEFT_BYTES = 2**16
"""What may still be allocated. The process's allocator keeps nothing larger than this back: see `ALLOCATOR`."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""glibc's settings under which what is freed goes back to the system, so that a cap is met each time."""


def live_bytes() -> int:
    """Bytes of all tensors that are referenced."""
    gc.collect()
    found = {id(o): o.nbytes for o in gc.get_objects() if issubclass(type(o), torch.Tensor) and not o.is_meta}
    return sum(found.values())


def run(stage: Stage, inputs: Any) -> dict[str, Any]:
    """One job's phase."""
    return stage.run(inputs, lambda _step: None, lambda: False)


def meet_the_cap(stage: Stage, inputs: Any) -> dict[str, Any]:
    """Run a job that doesn't fit. Returns what is to be said of its error, after it was cleaned up."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + LEFT_BYTES, hard))
    try:
        run(stage, inputs)
    except Exception as error:  # noqa: BLE001  (the test says which it must be)
        said = {"type": type(error).__name__, "is_shortage": is_out_of_memory(error)}
        said["sentence"] = memory_report.shortage(error, "cpu").sentence("cpu")
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        memory_report.give_back(error)
        return said
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    return {"type": ""}


def main(folder: str) -> None:
    """Says for each role: the error, the sentence, whether the next job has the same bits, and what is left over."""
    torch.set_num_threads(1)
    whole = Whole.open(folder)
    stages, description = [Stage.load(whole, role) for role in ROLES], describe(whole)

    def inputs_of(size: tuple[int, int, int]) -> Any:
        height, width, frames = size
        request = GenerationRequest(prompt="a red circle", seed=1, num_inference_steps=2)
        request.height, request.width, request.num_frames = height, width, frames
        return resolve(request, description).for_encoder()

    small, large = [inputs_of(SMALL)], [inputs_of(LARGE)]
    for stage in stages:
        small.append(run(stage, small[-1]))
        large.append(run(stage, large[-1]))
    for number, stage in enumerate(stages):
        before_bytes = live_bytes()
        said = meet_the_cap(stage, large[number])
        again = run(stage, small[number])
        said["same"] = all(
            torch.equal(again[name], value) for name, value in small[number + 1].items() if torch.is_tensor(value)
        )
        del again
        said["left_bytes"] = live_bytes() - before_bytes
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
