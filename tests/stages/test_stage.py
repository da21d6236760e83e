"""What a stage keeps for itself between jobs (nothing), what it holds, how it reports and stops."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors import safe_open

from tests.stages.conftest import FAMILIES, assert_equal_bits, picture, run_stages
from tests.stages.test_parity import BASE, ignore, request_of, run_modular, stage_inputs
from triptych.errors import InvalidRequest, JobCancelled
from triptych.model.inputs import resolve
from triptych.roles import ROLES
from triptych.stages import Step, handoff
from triptych.stages.library_errors import as_invalid_request, is_refusal
from triptych.stages.pipelines import for_job
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER


def result_of(outputs: dict[str, object]) -> Any:
    (value,) = outputs.values()
    return value


@pytest.mark.parametrize("name", FAMILIES)
def test_a_job_leaves_nothing_behind(name: str, model: Any) -> None:
    """A, then B with other seed and guidance, then A again on the same stages: A's bits stay, B's are a fresh run's."""
    tiny = model(name)
    frames = {"num_frames": 5} if tiny.description.frame_multiple else {}
    first, second = {**frames, "guidance_scale": 2.0}, {**frames, "guidance_scale": 6.0, "num_inference_steps": 4}
    a = result_of(run_stages(tiny.stages, stage_inputs(tiny, first, False, seed=1)))
    b = result_of(run_stages(tiny.stages, stage_inputs(tiny, second, False, seed=2)))
    again = result_of(run_stages(tiny.stages, stage_inputs(tiny, first, False, seed=1)))
    assert_equal_bits(a, again)
    assert not np.array_equal(np.asarray(a), np.asarray(b))
    assert_equal_bits(b, run_modular(tiny.folder, second, False, tiny.description.outputs[0], seed=2))


def test_inputs_are_not_changed_so_a_stage_can_run_twice(model: Any) -> None:
    """A redelivered job starts from the same room and gives the same bits."""
    tiny = model("ltx_image")
    encoded = tiny.stages[0].run(stage_inputs(tiny, {"num_frames": 5}, True), ignore, lambda: False)
    denoised = [tiny.stages[1].run(encoded, ignore, lambda: False) for _ in range(2)]
    decoded = [tiny.stages[2].run(values, ignore, lambda: False) for values in (*denoised, denoised[0])]
    assert torch.equal(denoised[0]["latents"], denoised[1]["latents"])
    assert_equal_bits(decoded[0]["videos"], decoded[1]["videos"])
    assert_equal_bits(decoded[0]["videos"], decoded[2]["videos"])


def test_the_generator_crosses_in_the_middle_of_its_stream(model: Any) -> None:
    """With a picture the encoder draws, so a new generator of the same seed would differ."""
    tiny = model("ltx_image")
    encoded = tiny.stages[0].run(stage_inputs(tiny, {"num_frames": 5}, True), ignore, lambda: False)
    generator = encoded["generator"]
    assert isinstance(generator, torch.Generator)
    assert not torch.equal(generator.get_state(), torch.Generator().manual_seed(7).get_state())


def test_the_process_keeps_its_own_global_random_state(model: Any) -> None:
    tiny = model("ltx_image")
    torch.manual_seed(99)
    before = torch.get_rng_state()
    run_stages(tiny.stages, stage_inputs(tiny, {"num_frames": 5}, False))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", FAMILIES)
def test_each_role_holds_only_its_own_components(name: str, model: Any) -> None:
    """Bytes by role and component, against the files themselves."""
    tiny = model(name)
    for stage in tiny.stages:
        expected = set(tiny.whole.component_names(stage.role))
        assert set(stage.component_bytes) <= expected
        for component, size_bytes in stage.component_bytes.items():
            files = list(Path(tiny.folder, component).glob("*.safetensors"))
            assert size_bytes == pytest.approx(sum(map(tensor_bytes, files)), rel=0.02), component
    encoder, transformer, decoder = tiny.stages
    assert set(transformer.component_bytes) == {"transformer"}
    assert set(decoder.component_bytes) == {"vae"}
    assert "transformer" not in encoder.component_bytes
    assert any("text_encoder" in component for component in encoder.component_bytes)


def tensor_bytes(path: Path) -> int:
    with safe_open(path, framework="pt") as file:
        return sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118


def test_shells_take_no_memory(model: Any) -> None:
    """The transformer's blocks read the VAE's configuration; its parameters are on `meta`."""
    tiny = model("qwen_image")
    stage = tiny.stages[1]
    run_stages(tiny.stages, stage_inputs(tiny, {}, False))
    shell = stage._pipeline._role_components.get("vae")
    assert all(parameter.is_meta for parameter in shell.parameters())
    assert len(shell.temperal_downsample) == 2, "the model's own configuration, not a default"


def test_progress_counts_every_step(model: Any) -> None:
    tiny = model("wan_t2v")
    steps: list[Step] = []
    run_stages(tiny.stages, stage_inputs(tiny, {"num_frames": 3, "num_inference_steps": 5}, False), steps)
    assert [(step.step, step.step_count) for step in steps] == [(k, 5) for k in range(1, 6)]
    assert all(step.preview_png == b"" for step in steps)


@pytest.mark.parametrize("name", FAMILIES)
def test_previews_are_pictures_and_change_no_bit(name: str, model: Any) -> None:
    tiny = model(name)
    frames = {"num_frames": 5} if tiny.description.frame_multiple else {}
    plain = run_stages(tiny.stages, stage_inputs(tiny, {**frames, "num_inference_steps": 4}, False))
    steps: list[Step] = []
    fields = {**frames, "num_inference_steps": 4, "preview_every_steps": 2}
    watched = run_stages(tiny.stages, stage_inputs(tiny, fields, False), steps)
    assert_equal_bits(result_of(plain), result_of(watched))
    assert [bool(step.preview_png) for step in steps] == [False, True, False, True]
    image = PIL.Image.open(io.BytesIO(steps[1].preview_png))
    assert image.width == 2 * image.height >= 256, "the shape of the request"
    assert np.asarray(image).std() > 0


@pytest.mark.parametrize("after", [1, 2])
def test_cancel_stops_within_one_step(after: int, model: Any) -> None:
    tiny = model("wan_t2v")
    values = tiny.stages[0].run(stage_inputs(tiny, {"num_inference_steps": 50}, False), ignore, lambda: False)
    steps: list[Step] = []
    with pytest.raises(JobCancelled):
        tiny.stages[1].run(values, steps.append, lambda: len(steps) >= after)
    assert len(steps) == after


def test_cancelled_before_it_began(model: Any) -> None:
    tiny = model("wan_t2v")
    for stage in tiny.stages:
        with pytest.raises(JobCancelled):
            stage.run({}, ignore, lambda: True)


def test_a_stage_runs_on_after_a_cancelled_job(model: Any) -> None:
    tiny = model("wan_t2v")
    fields = {"num_frames": 3}
    expected = run_stages(tiny.stages, stage_inputs(tiny, fields, False))
    values = tiny.stages[0].run(stage_inputs(tiny, fields, False, seed=8), ignore, lambda: False)
    steps: list[Step] = []
    with pytest.raises(JobCancelled):
        tiny.stages[1].run(values, steps.append, lambda: bool(steps))
    assert_equal_bits(result_of(expected), result_of(run_stages(tiny.stages, stage_inputs(tiny, fields, False))))


def test_a_blocks_refusal_is_an_invalid_request_in_its_own_words(model: Any) -> None:
    tiny = model("qwen_image")
    values = stage_inputs(tiny, {}, False)
    with pytest.raises(InvalidRequest, match=r"max_sequence_length.*cannot be greater than 1024"):
        run_stages(tiny.stages, {**values, "max_sequence_length": 5000})
    with pytest.raises(InvalidRequest, match=r"output_type|gibberish"):
        run_stages(tiny.stages, {**values, "output_type": "gibberish"})


def test_a_combination_without_a_branch_in_diffusers_is_an_invalid_request(model: Any) -> None:
    """Stages know a way round this one, so the block is called by itself."""
    encoder = model("wan_t2v").stages[0]._pipeline
    components = for_job(encoder, {}, None)
    block = encoder._blocks.sub_blocks["text_encoder"]
    with pytest.raises(UnboundLocalError) as raised:
        block.encode_prompt(components, "a circle", prepare_unconditional_embeds=False)
    assert is_refusal(raised.value)
    assert "combination of inputs" in str(as_invalid_request(raised.value, {}))


def test_other_errors_are_not_the_callers(model: Any) -> None:
    """A tensor whose shape doesn't fit is no refusal."""
    tiny = model("wan_t2v")
    values = tiny.stages[0].run(stage_inputs(tiny, {}, False), ignore, lambda: False)
    with pytest.raises(RuntimeError):
        tiny.stages[2].run({**values, "latents": torch.zeros(1, 5, 3, 4, 4)}, ignore, lambda: False)


def test_a_guiders_option_is_the_jobs_own(model: Any) -> None:
    tiny = model("wan_t2v")
    plain = result_of(run_stages(tiny.stages, stage_inputs(tiny, {"num_frames": 3}, False)))
    fields = {"num_frames": 3, "parameters": {"guider.guidance_rescale": 0.7}}
    rescaled = result_of(run_stages(tiny.stages, stage_inputs(tiny, fields, False)))
    assert not np.array_equal(plain, rescaled)
    with pytest.raises(InvalidRequest, match="stop"):
        run_stages(tiny.stages, stage_inputs(tiny, {"parameters": {"guider.start": 0.9, "guider.stop": 0.1}}, False))


def test_loading_one_workflow_loads_less_and_refuses_others(model: Any) -> None:
    tiny = model("sd3")
    fields = {"guidance_scale": 5.0}
    whole = Whole.open(tiny.folder, workflows=["text2image"])
    assert whole.config_digest() == tiny.whole.config_digest()
    stages = [Stage.load(whole, role) for role in ROLES]
    assert "vae" not in stages[0].component_bytes
    expected = run_stages(tiny.stages, stage_inputs(tiny, fields, False))
    assert_equal_bits(result_of(run_stages(stages, stage_inputs(tiny, fields, False))), result_of(expected))
    with pytest.raises(InvalidRequest, match=r"vae.*text2image"):
        run_stages(stages, {**stage_inputs(tiny, fields, False), "image": picture()})
    with pytest.raises(InvalidRequest, match=r"workflows.*text2image"):
        Whole.open(tiny.folder, workflows=["text2music"])


def test_each_load_argument_alone(model: Any) -> None:
    whole = model("wan_t2v").whole
    with pytest.raises(InvalidRequest, match="role"):
        Stage.load(whole, 0)
    with pytest.raises(InvalidRequest, match=r"dtype is 'int8'.*bfloat16"):
        Stage.load(whole, ROLE_DECODER, dtype="int8")
    with pytest.raises(InvalidRequest, match="device is 'abacus'"):
        Stage.load(whole, ROLE_DECODER, device="abacus")


def test_roles_in_their_own_dtypes(model: Any) -> None:
    """As a model is mostly run: bfloat16, but for the VAE's decoder."""
    tiny = model("wan_t2v")
    dtypes = {ROLE_ENCODER: "bfloat16", ROLE_TRANSFORMER: "bfloat16", ROLE_DECODER: "float32"}
    stages = [Stage.load(tiny.whole, role, dtype=dtype) for role, dtype in dtypes.items()]
    assert stages[1].component_bytes["transformer"] < tiny.stages[1].component_bytes["transformer"]
    assert stages[2].component_bytes == tiny.stages[2].component_bytes
    videos = run_stages(stages, stage_inputs(tiny, {"num_frames": 3}, False))["videos"]
    assert np.isfinite(videos).all()


def test_values_move_between_kinds_of_devices() -> None:
    tensor = torch.ones(2)
    moved = handoff.relocate({"a": [tensor, (tensor, 1)], "b": "text"}, "cpu", torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1][0].is_meta
    assert moved["b"] == "text"
    assert not handoff.relocate(tensor, "cuda", torch.device("meta")).is_meta


def test_a_seed_is_drawn_where_none_is_given(model: Any) -> None:
    description = model("wan_t2v").description
    request = request_of({})
    request.ClearField("seed")
    seeds = {resolve(request, description).for_encoder()[handoff.SETTINGS]["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert set(BASE) <= set(resolve(request, description).for_encoder())
