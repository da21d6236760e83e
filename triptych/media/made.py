"""What a pipeline made, sorted: clips, sound and data, of one run or of several after one another."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from triptych.media.clips import Clip, clips, to_array
from triptych.media.formats import OUTPUT_NAMES, RUNS, SOUND, formats_for, kind_of
from triptych.media.sounds import Sound, waveforms

RATE_OUTPUTS = ("sampling_rate", "sample_rate", "audio_sampling_rate")
"""What pipelines call an output that is the rate of their sound."""
_NUMBERED = re.compile(r"((?:[a-z]\w*-)?)(\d+)(.*)")


class Made(NamedTuple):
    """A result."""

    clips: list[Clip]
    sounds: list[Sound]
    data: dict[str, object]
    """What is neither, by name."""
    sound_values: dict[str, object]
    """Sound as the pipeline yielded it, by name."""

    def accepted(self) -> list[str]:
        """The formats that can hold it."""
        kinds = ["videos" if clip.is_video else "images" for clip in self.clips]
        return formats_for([*kinds, *([SOUND] if self.sounds else [])])


def gather(outputs: Mapping[str, object], sampling_rate_hz: int = 0) -> Made:
    """Sort a stage's outputs. `sampling_rate_hz` is of sound whose rate isn't among them; 0 where it isn't known."""
    runs = outputs.get(RUNS)
    if not isinstance(runs, Sequence):
        return _gather_run(outputs, sampling_rate_hz)
    made = Made([], [], {}, {})
    counts: dict[str, int] = {}
    for number, run in enumerate(runs):
        one = _gather_run(run, sampling_rate_hz)
        made.clips.extend(_renumbered(one.clips, counts))
        made.sounds.extend(one.sounds)
        for mine, others in ((made.data, one.data), (made.sound_values, one.sound_values)):
            mine.update((f"{name}-{number}", value) for name, value in others.items())
    return made


def _gather_run(outputs: Mapping[str, object], sampling_rate_hz: int) -> Made:
    found, rest = clips(outputs)
    told = next((rate for name in RATE_OUTPUTS if isinstance(rate := rest.get(name), int | float)), 0)
    rate_hz = int(told or sampling_rate_hz)
    data = {name: value for name, value in rest.items() if value is not None}
    values = {name: data.pop(name) for name in OUTPUT_NAMES[SOUND] if name in data and rate_hz > 0}
    sounds: list[Sound] = []
    for name, value in list(values.items()):
        waves = waveforms(value, rate_hz, len(found))
        if not waves:
            data[name] = values.pop(name)
        sounds += waves
    if not data.keys() & OUTPUT_NAMES[SOUND]:
        data = {name: value for name, value in data.items() if name not in RATE_OUTPUTS}
    return Made(found, sounds, data, values)


def _renumbered(found: Sequence[Clip], counts: dict[str, int]) -> list[Clip]:
    """A run's clips, counted on from those of the runs before."""
    starts = dict(counts)
    renamed = []
    for clip in found:
        matched = _NUMBERED.fullmatch(clip.name)
        assert matched is not None, clip.name
        prefix, number, layer = matched.groups()
        index = starts.get(prefix, 0) + int(number)
        counts[prefix] = max(counts.get(prefix, 0), index + 1)
        renamed.append(clip._replace(name=f"{prefix}{index}{layer}"))
    return renamed


def exact_values(outputs: Mapping[str, object]) -> dict[str, object]:
    """All arrays and tensors of a stage's outputs by name, with `-0`, `-1` … for those of a list or of a run."""
    runs = outputs.get(RUNS)
    if isinstance(runs, Sequence):
        return {
            f"{name}-{number}": value for number, run in enumerate(runs) for name, value in exact_values(run).items()
        }
    found: dict[str, object] = {}
    for name, value in outputs.items():
        if to_array(value) is not None:
            found[name] = value
        elif isinstance(value, list | tuple) and value and all(to_array(item) is not None for item in value):
            found.update((f"{name}-{index}", item) for index, item in enumerate(value))
        elif kind_of(name) != SOUND:
            found.update((f"{name}-{clip.name}", clip.frames_FHWC) for clip in clips({name: value})[0])
    return found
