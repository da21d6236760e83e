"""A role loads what its jobs use: models that a later role loads, too, wait for a job that uses their weights."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.families import cases, monolith
from tests.families.requests import request_of
from tests.stages.conftest import assert_equal_bits
from triptych.errors import ModelInvalid
from triptych.model.inputs import resolve
from triptych.roles import ROLES
from triptych.stages.describe import describe
from triptych.stages.on_demand import OnDemand, Touched, stand_in
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole

HELD = {
    "stable-diffusion-xl": [{"text_encoder", "text_encoder_2", "image_encoder"}, {"unet", "controlnet"}, {"vae"}],
    "ltx2": [
        {"text_encoder", "connectors", "duration_head"},
        {"transformer"},
        {"vae", "audio_vae", "vocoder"},
    ],
    "qwenimage": [{"text_encoder"}, {"controlnet", "transformer"}, {"vae"}],
}
"""What each role of a new fleet holds, and still holds after a job of text alone."""
TEXT, IMAGE = "text2image", "image2image"


def loaded(folder: str) -> tuple[Whole, list[Stage]]:
    whole = Whole.open(folder)
    return whole, [Stage.load(whole, role) for role in ROLES]


def assert_right(whole: Whole, stages: list[Stage], case: cases.Case) -> None:
    """The job gives diffusers' bits."""
    values = resolve(request_of(case), describe(whole)).for_encoder()
    for stage in stages:
        values = stage.run(values, lambda _step: None, lambda: False)
    for name, value in monolith.run(whole.model, case, list(values)).items():
        assert_equal_bits(values[name], value)


def case_of(family: str, workflow: str) -> cases.Case:
    return next(case for case in cases.cases_of(family) if case.workflow == workflow and not case.model)


def held(stages: list[Stage]) -> list[set[str]]:
    return [set(stage.component_bytes) for stage in stages]


@pytest.mark.parametrize("family", HELD)
def test_text_alone_loads_nothing_more(family: str, family_folder: Callable[[str], str]) -> None:
    whole, stages = loaded(family_folder(family))
    assert held(stages) == HELD[family]
    case = next(case for case in cases.cases_of(family) if case.workflow.startswith("text2") and not case.model)
    assert_right(whole, stages, case)
    assert held(stages) == HELD[family]


@pytest.mark.parametrize("family", ["stable-diffusion-xl", "qwenimage"])
def test_the_first_picture_loads_the_encoders_vae(
    family: str, family_folder: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    """Bits are right in the job that loads it and in those after it, and the log says so once."""
    whole, stages = loaded(family_folder(family))
    with caplog.at_level(logging.INFO, "triptych.stages.on_demand"):
        for workflow in (TEXT, IMAGE, IMAGE, TEXT):
            assert_right(whole, stages, case_of(family, workflow))
    assert held(stages)[0] == HELD[family][0] | {"vae"}
    assert held(stages)[1:] == HELD[family][1:]
    assert [line for line in caplog.messages if line.startswith("loading vae")] == [
        "loading vae, because a job uses it; until now none did"
    ]


def test_a_model_whose_files_are_gone_fails_the_job_and_no_other(
    family_folder: Callable[[str], str], tmp_path: Path
) -> None:
    folder = shutil.copytree(family_folder("qwenimage"), tmp_path / "model")
    whole, stages = loaded(str(folder))
    (weights,) = Path(folder, "vae").glob("*.safetensors")
    weights.rename(tmp_path / "away")
    inputs = resolve(request_of(case_of("qwenimage", IMAGE)), describe(whole)).for_encoder()
    with pytest.raises(ModelInvalid, match=r"component .vae. has no weights in .*diffusion_pytorch_model.safetensors"):
        stages[0].run(inputs, lambda _step: None, lambda: False)
    weights.write_bytes((tmp_path / "away").read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ModelInvalid, match="was changed since this worker started: start it again"):
        stages[0].run(inputs, lambda _step: None, lambda: False)
    weights.unlink()
    (tmp_path / "away").rename(weights)
    assert held(stages) == HELD["qwenimage"]
    for workflow in (TEXT, IMAGE):
        assert_right(whole, stages, case_of("qwenimage", workflow))


def test_a_stand_in_answers_for_its_model(family_folder: Callable[[str], str]) -> None:
    """Class, configuration, element types and device, also those that stay in float32; anything else touches it."""
    whole = Whole.open(family_folder("stable-diffusion-xl"))
    encoder = Stage.load(whole, ROLES[0], dtype="bfloat16")
    real = Stage.load(whole, ROLES[1], dtype="bfloat16")._pipeline._role_components.get("unet")
    waits: Any = encoder._pipeline._role_components.get("unet")
    assert type(waits) is type(real)
    assert {**waits.config, "_name_or_path": ""} == {**real.config, "_name_or_path": ""}
    assert (waits.dtype, waits.device) == (real.dtype, real.device)
    facts = [
        {name: (one.shape, one.dtype, one.device, one.numel(), one.requires_grad) for name, one in model}
        for model in (waits.named_parameters(), real.requires_grad_(False).named_parameters())
    ]
    assert facts[0] == facts[1]
    for use in (
        lambda: waits.conv_in(torch.zeros(1, 4, 8, 8)),
        lambda: waits.conv_in.weight + 1,
        lambda: torch.cat([torch.zeros(1), waits.conv_in.bias]),
        lambda: waits.to(torch.float32),
        lambda: waits.conv_in.weight.data_ptr(),
        lambda: waits.conv_in.bias.tolist(),
    ):
        with pytest.raises(Touched) as raised:
            use()
        assert raised.value.component == "unet"


class Kept:
    """A set of components whose models load at once."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def config_digest(self) -> str:
        return "as it was"

    def get(self, _name: str) -> torch.nn.Module:
        return self.model

    def load(self, _name: str) -> None:
        self.model = torch.nn.Linear(2, 2)

    def put_back(self, _name: str, model: torch.nn.Module) -> None:
        self.model = model


def test_a_run_begins_anew_with_what_it_was_given() -> None:
    """Random numbers that were drawn, and tensors that were changed, are as they were."""
    with torch.device("meta"):
        model = stand_in("net", torch.nn.Linear(2, 2), torch.device("cpu"))
    kept = Kept(model)
    seen = []
    inputs = {"generator": torch.Generator().manual_seed(3), "nested": [torch.ones(2)]}

    def work(given: Any) -> torch.Tensor:
        drawn = torch.randn(2, generator=given["generator"])
        seen.append((drawn.tolist(), given["nested"][0].tolist()))
        given["nested"][0].mul_(2)
        given["nested"].append("more")
        result: torch.Tensor = kept.model(drawn)
        return result

    made = OnDemand(kept, kept, ["net"], lambda: None).run(inputs, work)
    assert made.shape == (2,)
    assert len(seen) == 2
    assert seen[0] == seen[1]
