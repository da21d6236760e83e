"""Step caches: diffusers' bits, an effect, and no state that goes from one job to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.means.conftest import FIELDS, components, opened, ours, reference, run_job, stages_of
from tests.stages.test_parity import pipeline_arguments, request_of
from triptych.errors import InvalidRequest, JobCancelled
from triptych.model.inputs import resolve

RATIOS = [1.0] * 6
CACHES: dict[str, dict[str, Any]] = {
    "FirstBlockCacheConfig": {"threshold": 0.5},
    "TaylorSeerCacheConfig": {
        "cache_interval": 3,
        "disable_cache_before_step": 1,
        "taylor_factors_dtype": "float32",
        "cache_identifiers": [r"(transformer_)?blocks\.\d+\.attn\d"],
    },
    "MagCacheConfig": {"threshold": 1.0, "num_inference_steps": 6, "retention_ratio": 0.1, "mag_ratios": RATIOS},
    "FasterCacheConfig": {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_block_identifiers": [r"^(transformer_)?blocks.*attn"],
    },
    "PyramidAttentionBroadcastConfig": {"spatial_attention_block_skip_range": 2},
}
BRANCHLESS = ("FasterCacheConfig", "PyramidAttentionBroadcastConfig")
MODELS = {"wan_t2v": "WanPipeline", "ltx_image": "LTXPipeline"}
"""With the class of the classic pipeline, which knows guidance that is off."""
NAMES_BRANCHES = ("ltx_image",)
"""Its blocks call `cache_context` themselves."""


def fields_of(model: str, cache: str) -> dict[str, Any]:
    """The model's job; without guidance, for caches that can't tell its branches."""
    return {**FIELDS[model], **({"guidance_scale": 1.0} if cache in BRANCHLESS else {})}


def tables_of(cache: str) -> dict[str, Any]:
    return components(transformer={"cache": {"config": cache, **CACHES[cache]}})


def by_hand(model: str, cache: str) -> Callable[[Any], None]:
    """diffusers' calls in one process. Where its blocks set no context, each branch's call of the model gets one."""

    def change(pipeline: Any) -> None:
        transformer, options = pipeline.transformer, dict(CACHES[cache])
        now: dict[str, Any] = {}
        if cache in BRANCHLESS:
            options["current_timestep_callback"] = lambda: float(now["timestep"].flatten()[0])
        if cache == "FasterCacheConfig":
            options["is_guidance_distilled"] = True
        if "taylor_factors_dtype" in options:
            options["taylor_factors_dtype"] = torch.float32
        transformer.enable_cache(getattr(diffusers, cache)(**options))
        forward, calls = transformer.forward, [0]

        def in_context(*args: Any, **kwargs: Any) -> Any:
            now["timestep"] = kwargs["timestep"]
            if model in NAMES_BRANCHES or cache in BRANCHLESS:
                return forward(*args, **kwargs)
            calls[0] += 1
            with transformer.cache_context(("uncond", "cond")[calls[0] % 2]):
                return forward(*args, **kwargs)

        transformer.forward = in_context

    return change


def without_guidance(folder: str, fields: dict[str, Any], change: Callable[[Any], None]) -> Any:
    """diffusers' classic pipeline, whose bits the stages give where there is one branch."""
    name = next(kind for model, kind in MODELS.items() if model in folder)
    pipeline = getattr(diffusers, name).from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    change(pipeline)
    arguments = {**pipeline_arguments(fields, False), "guidance_scale": 1.0, "output_type": "np"}
    torch.manual_seed(7)
    return pipeline(**arguments, generator=torch.Generator().manual_seed(7))[0]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("model", MODELS)
def test_a_cache_gives_diffusers_bits_and_has_an_effect(model: str, cache: str, folder_of: Any) -> None:
    folder, fields = folder_of(model), fields_of(model, cache)
    made = ours(folder, fields, tables_of(cache))
    expected = without_guidance if cache in BRANCHLESS else reference
    assert np.array_equal(made, expected(folder, fields, by_hand(model, cache)))
    assert not np.array_equal(made, ours(folder, fields, {})), "it skipped something"


@pytest.mark.parametrize("cache", CACHES)
def test_no_state_goes_from_one_job_to_the_next(cache: str, folder_of: Any) -> None:
    """Jobs of other sizes, seeds, guidance and lengths, in any order, each equal to its run on a new stage."""
    folder = folder_of("wan_t2v")
    base = fields_of("wan_t2v", cache)
    jobs = [
        (base, 1),
        ({**base, "num_frames": 3, "num_inference_steps": 4}, 2),
        ({**base, "width": 32, "guidance_scale": 1.0, "num_inference_steps": 5}, 3),
    ]
    alone = [run_job(folder, stages_of(folder, tables_of(cache)), *job) for job in jobs]
    stages = stages_of(folder, tables_of(cache))

    @settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.integers(0, len(jobs) - 1), min_size=2, max_size=4))
    def interleaved(order: list[int]) -> None:
        for index in order:
            assert np.array_equal(run_job(folder, stages, *jobs[index]), alone[index]), (order, index)

    interleaved()


def test_a_job_that_breaks_off_leaves_no_state(folder_of: Any) -> None:
    """Cancelled in its third step, with a context open somewhere."""
    folder, cache = folder_of("wan_t2v"), "FirstBlockCacheConfig"
    tables, fields = tables_of(cache), FIELDS["wan_t2v"]
    stages = stages_of(folder, tables)
    expected = run_job(folder, stages, fields)
    inputs = resolve(request_of(dict(fields)), opened(folder)[1]).for_encoder()
    values = stages[0].run(inputs, lambda _step: None, lambda: False)
    done: list[Any] = []
    with pytest.raises(JobCancelled):
        stages[1].run(values, done.append, lambda: len(done) == 3)
    assert np.array_equal(run_job(folder, stages, fields), expected)


@pytest.mark.parametrize("cache", BRANCHLESS)
def test_a_cache_that_cant_tell_branches_refuses_guidance(cache: str, folder_of: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"guidance is 'on'; accepted: off, .*{cache} can't tell branches"):
        ours(folder_of("wan_t2v"), FIELDS["wan_t2v"], tables_of(cache))


@pytest.mark.parametrize(
    ("table", "named"),
    [
        (
            {"config": "TaylorSeerCacheConfig", "cache_identifiers": ["nothing"]},
            "identifiers that match .* blocks.0.attn1",
        ),
        (
            {"config": "FasterCacheConfig", "is_guidance_distilled": False},
            "is_guidance_distilled is False; accepted: true",
        ),
        ({"config": "MagCacheConfig"}, "cache is .*mag_ratios"),
    ],
)
def test_a_cache_without_effect_or_sense_is_refused_at_the_start(table: Any, named: str, folder_of: Any) -> None:
    with pytest.raises(InvalidRequest, match=named):
        stages_of(folder_of("wan_t2v"), components(transformer={"cache": table}))


def test_a_model_without_caches_says_so(folder_of: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"components\.vae\.cache is .*can't have a step cache"):
        stages_of(folder_of("wan_t2v"), components(vae={"cache": {"config": "FirstBlockCacheConfig"}}))


def test_a_cache_is_named_as_lossy_and_is_a_setting(folder_of: Any) -> None:
    stages = stages_of(folder_of("wan_t2v"), tables_of("FirstBlockCacheConfig"))
    assert [stage.settings.get("lossy") for stage in stages] == [
        None,
        "transformer: transformer.cache FirstBlockCacheConfig",
        None,
    ]
    assert stages[1].settings["transformer.cache"] == '{"config": "FirstBlockCacheConfig", "threshold": 0.5}'
