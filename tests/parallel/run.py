"""A few jobs through the three stages, the transformer's in two processes.

python -m tests.parallel.run KIND FOLDER ADAPTERS OUT [SETTINGS…]: the result of job N goes to OUT/N.npy; where ADAPTERS
is empty, jobs with one are left out. Printed is how often this process has computed the model in each job, or
`cancelled`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.worker.group import open_group
from services.worker.process import load_stage
from triptych.config import WorkerConfig, load
from triptych.errors import JobCancelled
from triptych.model.inputs import resolve
from triptych.stages import AnyStage
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER
from triptych_client.request import build_request

SMALL = {"height": 32, "width": 64, "num_frames": 5, "num_inference_steps": 4, "negative_prompt": "blur"}
JOBS: tuple[dict[str, Any], ...] = (
    {"seed": 1},
    {"seed": 2, "guidance_scale": 1.0},
    {"seed": 3, "num_frames": 9},
    {"seed": 1, "adapters": {"style": 0.5}},
    {"seed": 1},
)
CANCELLED = 2
"""The job before which one is cancelled in the middle: the next has to come out right."""


def main() -> None:
    """Run the jobs."""
    kind, folder, adapters, out, *more = sys.argv[1:]
    torch.set_num_threads(1)
    settings = ["--model", folder, "--threads", "1", "--parallel", kind, "--devices", "cpu,cpu", *more]
    settings += ["--adapters", adapters] if adapters else []
    config = load(WorkerConfig, settings)
    encoder, model = load_stage(ROLE_ENCODER, config)
    decoder, _ = load_stage(ROLE_DECODER, config)
    with open_group(ROLE_TRANSFORMER, config, partial(load_stage, ROLE_TRANSFORMER, config), settings) as (
        transformer,
        _,
    ):
        print(transformer.settings["parallel"])
        computed: list[None] = []
        blocks: Any = transformer
        blocks._pipeline.transformer.blocks[0].register_forward_hook(lambda *_: computed.append(None))
        for number, fields in enumerate(JOBS):
            if "adapters" in fields and not adapters:
                continue
            request = build_request("a big red circle", **{**SMALL, **fields})
            encoded = encoder.run(resolve(request, model).for_encoder(), lambda _step: None, lambda: False)
            if number == CANCELLED:
                cancel(transformer, encoded)
            computed.clear()
            denoised = transformer.run(encoded, lambda _step: None, lambda: False)
            (value,) = decoder.run(denoised, lambda _step: None, lambda: False).values()
            np.save(Path(out, f"{number}.npy"), np.asarray(value[0]))
            print(len(computed))


def cancel(transformer: AnyStage, encoded: Mapping[str, object]) -> None:
    """Begin a job and cancel it after its second step."""
    answers = iter((False, False, True))
    try:
        transformer.run(encoded, lambda _step: None, lambda: next(answers))
    except JobCancelled:
        print("cancelled")


if __name__ == "__main__":
    main()
