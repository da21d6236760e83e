"""What a pipeline's results are: which outputs are pictures, videos or sound, and at what rate the sound plays.

The rate of sound has one rule for all families. An output is sound by its name (`formats.OUTPUT_NAMES`). Where the
blocks yield its rate beside it (`made.RATE_OUTPUTS`), that counts. Otherwise it is what the components say in their
configs that the block which yields the sound expects: a vocoder's `output_sampling_rate` before a `sampling_rate` or
`sample_rate`, because the second may be that of the spectrograms that it reads. The pipeline's own property is the
last to be asked: in some families it is the rate that latents are counted by, and not the vocoder's.
"""

from __future__ import annotations

from typing import Any

from triptych.media.formats import SOUND, default_format, formats_for, kind_of, kinds_of
from triptych.media.made import RATE_OUTPUTS
from triptych.model.description import Description
from triptych.model.outputs import describe_outputs
from triptych.stages.handoff import leaves
from triptych.stages.whole import Whole
from triptych.v1 import model_pb2
from triptych.v1.dispatch_pb2 import ROLE_DECODER

_CONFIG_RATES = ("output_sampling_rate", "sampling_rate", "sample_rate")
_PROPERTY_RATES = ("audio_sampling_rate", "sound_sampling_rate", "sampling_rate")


def describe_result(whole: Whole, pipeline: Any, description: Description) -> model_pb2.ResultDescription:
    """The outputs, their formats and how several results are made. `pipeline` answers about configuration."""
    names = whole.outputs()
    kinds = kinds_of(names)
    rates_hz = {}
    if not set(names) & set(RATE_OUTPUTS):
        rates_hz = {name: _rate_hz(name, whole, pipeline) for name in names if kind_of(name) == SOUND}
    return model_pb2.ResultDescription(
        outputs=describe_outputs(names, rates_hz),
        formats=formats_for(kinds),
        default_format=default_format(kinds),
        count_input=description.output_count_input or "",
    )


def _rate_hz(output: str, whole: Whole, pipeline: Any) -> int:
    """Samples a second of an output that is sound; 0 where nothing tells it."""
    expected = {
        spec.name
        for leaf in leaves(whole.blocks[ROLE_DECODER])
        if output in {one.name for one in leaf.intermediate_outputs}
        for spec in leaf.expected_components
    }
    configs = [getattr(getattr(pipeline, name, None), "config", {}) for name in sorted(expected)]
    told = [config.get(key) for key in _CONFIG_RATES for config in configs]
    told += [getattr(pipeline, name, None) for name in _PROPERTY_RATES]
    return next((int(rate) for rate in told if isinstance(rate, int | float) and rate > 0), 0)
