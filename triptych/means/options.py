"""The means of a role: how its models are loaded, placed and run, as the tables of a TOML file say.

A role's file has three tables beside the settings of `triptych.config`: `[process]`, `[components.NAME]` for each of
the pipeline's components, and `[[warm_up]]`. docs/means.md explains each option; `triptych config options` lists them.
Pure: no torch, and no look at the model. `triptych.stages.means` applies them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from triptych.errors import InvalidRequest
from triptych.means.published import ATTENTIONS, CACHES, QUANTIZATIONS
from triptych.means.tables import CHANGES, LOSSY, check_choice, check_keys, join, option, read, subtable

DTYPES = ("float32", "bfloat16", "float16")
TABLES = ("process", "components", "warm_up")
"""The tables of a role's file that are its means."""
WARM_UPS_MAX = 32
"""Jobs before READY: more shapes than anybody compiles for."""
ADAPTER_RANK_MAX = 4096
"""Highest rank of adapters that are swapped in: wider than the layers of most models."""
TABLE_CHARS_MAX = 65_536
"""Longest JSON of a role's means: they travel on a command line, and Linux takes 128 KiB in one argument."""
_TRANSFORMER = "transformer; encoders that hold such a model"
_VAE = "encoder and decoder: VAEs"


@dataclass(frozen=True)
class Offload:
    """`[components.NAME.offload]`: weights wait elsewhere until they are needed."""

    kind: str = option("group", "diffusers' group offload, or accelerate's cpu_offload", among=("group", "sequential"))
    offload_type: str = option(
        "block_level", "group: several blocks at a time, or each layer", among=("block_level", "leaf_level")
    )
    num_blocks_per_group: int = option(1, "group by block_level: blocks in one group", least=1, most=1000)
    device: str = option("cpu", "group: where weights wait")
    folder: str = option("", "group: weights wait in files of this folder")
    use_stream: bool = option(False, "group: copy ahead on a CUDA stream")
    record_stream: bool = option(False, "group: with use_stream, free earlier")
    non_blocking: bool = option(False, "group: copies don't hold the host")
    low_cpu_mem_usage: bool = option(False, "group: with use_stream, pin memory as it is needed")

    def __post_init__(self) -> None:
        """Refuse streams where nothing is copied between devices."""
        if self.kind == "sequential" and dataclasses.replace(self, kind="group") != Offload():
            raise InvalidRequest("offload.kind", self.kind, "'group', where other options of offload are given")


@dataclass(frozen=True)
class Compile:
    """`[components.NAME.compile]`: torch.compile."""

    what: str = option(
        "repeated_blocks", "diffusers' compile_repeated_blocks, or whole modules", among=("repeated_blocks", "whole")
    )
    modules: Sequence[str] = option(
        None, "whole: parts to compile, by path; default: the model, or a VAE's encoder and decoder", kinds=(list,)
    )
    backend: str = option("inductor", "torch.compile's backend")
    mode: str = option("", "torch.compile's mode, for example max-autotune")
    fullgraph: bool = option(False, "refuse breaks of the graph")
    dynamic: bool = option(None, "shapes are symbols, or constants; default: torch finds out", kinds=(bool,))
    adapter_rank: int = option(
        0, "adapters up to this rank are swapped in without compiling again; 0 for none", least=0, most=ADAPTER_RANK_MAX
    )


@dataclass(frozen=True)
class ComponentMeans:
    """`[components.NAME]`: how one component is loaded, placed and run."""

    device: str = option("", "torch device, where it isn't the role's; accelerate moves what goes in and comes out")
    device_map: str | Mapping[str, Any] = option(
        "", "over several devices: auto, or a table by part", kinds=(str, dict)
    )
    max_memory: Mapping[str, Any] = option(None, "device_map: the most that each device holds", kinds=(dict,))
    offload_folder: str = option("", "device_map: where parts mapped to disk wait")
    dtype: str = option("", "element type of the weights, where it isn't the role's", bits=CHANGES, among=DTYPES)
    quantization: Mapping[str, Any] = option(
        None, "a configuration of diffusers' by its `config`, and its options", bits=LOSSY, kinds=(dict,)
    )
    gguf: str = option("", "file of the weights, with quantization's config GGUFQuantizationConfig", bits=LOSSY)
    offload: Offload | None = field(
        default=None, metadata=subtable(Offload, "weights wait elsewhere until they are needed")
    )
    attention: str = option(
        "", "backend of attention: set_attention_backend", roles=_TRANSFORMER, bits=CHANGES, among=ATTENTIONS
    )
    compile: Compile | None = field(default=None, metadata=subtable(Compile, "torch.compile", bits=CHANGES))
    cache: Mapping[str, Any] = option(
        None,
        "a step cache of diffusers' by its `config`, and its options",
        roles="transformer",
        bits=LOSSY,
        kinds=(dict,),
    )
    tiling: bool | Mapping[str, Any] = option(
        False, "enable_tiling: true, or its arguments", roles=_VAE, bits=CHANGES, kinds=(bool, dict)
    )
    slicing: bool = option(False, "enable_slicing: one result at a time", roles=_VAE, bits=CHANGES)
    memory_format: str = option(
        "", "layout of weights in memory", bits=CHANGES, among=("channels_last", "channels_last_3d")
    )


@dataclass(frozen=True)
class ProcessMeans:
    """`[process]`: what holds for a worker's whole process."""

    allocator: str = option("", "PYTORCH_ALLOC_CONF, for example expandable_segments:True")
    numa_node: int = option(-1, "run on this node's cores, and take its memory; -1 for any", least=-1, most=1023)
    matmul_precision: str = option(
        "", "of float32 products: high and medium take TF32", bits=CHANGES, among=("highest", "high", "medium")
    )
    cudnn_tf32: bool = option(None, "TF32 in convolutions; default: torch's", bits=CHANGES, kinds=(bool,))
    cudnn_benchmark: bool = option(
        None, "try convolutions for the fastest; default: torch's", bits=CHANGES, kinds=(bool,)
    )


@dataclass(frozen=True)
class WarmUp:
    """`[[warm_up]]`: a job that is run before READY, so that what is made at first use is there."""

    height: int = option(0, "of the request; 0 for the model's default", least=0, most=65_536)
    width: int = option(0, "of the request; 0 for the model's default", least=0, most=65_536)
    num_frames: int = option(0, "of the request; 0 for the model's default", least=0, most=1_000_000)
    num_inference_steps: int = option(2, "steps", least=1, most=1000)
    guidance_scale: float = option(-1.0, "of the request; -1 for the model's default", least=-1, most=1000)
    parameters: Mapping[str, Any] = option(None, "other inputs of the request", kinds=(dict,))


@dataclass(frozen=True)
class RoleMeans:
    """All means of one role."""

    process: ProcessMeans = field(default_factory=ProcessMeans)
    components: Mapping[str, ComponentMeans] = field(default_factory=dict)
    warm_up: tuple[WarmUp, ...] = ()

    def of(self, component: str) -> ComponentMeans:
        """The means of a component; the defaults where none are given."""
        return self.components.get(component, ComponentMeans())


def of_tables(tables: Mapping[str, Any], path: str = "") -> RoleMeans:
    """Means from a file's tables. Raises InvalidRequest that names a key by its `path`, its value, what is accepted."""
    check_keys(path, tables, TABLES)
    components = tables.get("components", {})
    warm_up = tables.get("warm_up", [])
    if not isinstance(components, Mapping):
        raise InvalidRequest(join(path, "components"), components, "a table of components by name")
    if not isinstance(warm_up, list) or len(warm_up) > WARM_UPS_MAX:
        raise InvalidRequest(join(path, "warm_up"), warm_up, f"at most {WARM_UPS_MAX} tables [[warm_up]]")
    return RoleMeans(
        read(ProcessMeans, join(path, "process"), tables.get("process", {})),
        {name: _component(join(path, f"components.{name}"), table) for name, table in components.items()},
        tuple(read(WarmUp, join(path, f"warm_up[{index}]"), one) for index, one in enumerate(warm_up)),
    )


def of_json(name: str, text: str) -> RoleMeans:
    """Means from the JSON of their tables, which is the setting `means`. Raises InvalidRequest."""
    if not text:
        return RoleMeans()
    if len(text) > TABLE_CHARS_MAX:
        raise InvalidRequest(name, f"{len(text)} characters", f"at most {TABLE_CHARS_MAX}")
    try:
        tables = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(name, text, f"JSON of the tables {', '.join(TABLES)}") from error
    if not isinstance(tables, dict):
        raise InvalidRequest(name, text, f"JSON of the tables {', '.join(TABLES)}")
    return of_tables(tables)


def merged(general: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Tables of a role over those of all workers: key by key, and table by table. A list replaces a list."""
    result = dict(general)
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def given(means: Any) -> Iterator[tuple[str, Any, str]]:
    """Name, value and `bits` of the options of a table that differ from their defaults."""
    for f in dataclasses.fields(means):
        value = getattr(means, f.name)
        if value != f.default:
            is_table = dataclasses.is_dataclass(value) and not isinstance(value, type)
            yield f.name, dataclasses.asdict(value) if is_table else value, f.metadata["bits"]


def _check_swaps(path: str, means: ComponentMeans) -> None:
    """Adapters are swapped in where the component's weights are, so these must stay there, as they are."""
    others = ("quantization", "gguf", "offload", "device_map")
    if means.compile is not None and (rank := means.compile.adapter_rank):
        for name in others:
            if getattr(means, name):
                raise InvalidRequest(join(path, "compile.adapter_rank"), rank, f"0 beside {name}")


def _component(path: str, table: Any) -> ComponentMeans:
    means = read(ComponentMeans, path, table)
    _check_named(path, "quantization", means.quantization, QUANTIZATIONS)
    _check_named(path, "cache", means.cache, CACHES)
    is_gguf = bool(means.quantization) and means.quantization["config"] == "GGUFQuantizationConfig"
    if is_gguf != bool(means.gguf):
        accepted = "a file, together with quantization's config GGUFQuantizationConfig"
        raise InvalidRequest(join(path, "gguf"), means.gguf, accepted)
    elsewhere = {"device": means.device, "device_map": means.device_map, "offload": means.offload}
    if len(ways := [name for name, value in elsewhere.items() if value]) > 1:
        raise InvalidRequest(join(path, ways[1]), elsewhere[ways[1]], f"nothing beside {ways[0]}")
    _check_swaps(path, means)
    if (means.max_memory or means.offload_folder) and not means.device_map:
        raise InvalidRequest(
            join(path, "device_map"), "", "auto or a table, where max_memory or offload_folder is given"
        )
    return means


def _check_named(path: str, key: str, table: Mapping[str, Any] | None, known: Mapping[str, tuple[str, ...]]) -> None:
    """Check a table that names a configuration of diffusers' and gives its options."""
    if table is None:
        return
    name = table.get("config")
    if not isinstance(name, str):
        raise InvalidRequest(join(path, f"{key}.config"), name, f"one of {', '.join(known)}")
    check_choice(join(path, f"{key}.config"), name, tuple(known))
    check_keys(join(path, key), {k: v for k, v in table.items() if k != "config"}, known[name])
