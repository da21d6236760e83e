"""Fleets' and roles' files: what they say arrives at the right processes, and every mistake is named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from triptych.config import WorkerConfig, load
from triptych.errors import InvalidRequest
from triptych.means.options import RoleMeans, of_json, of_tables
from triptych.means.process import cores_of
from triptych_client import fleet_file
from triptych_client.cli import build_parser, main
from triptych_client.commands.config import options
from triptych_client.commands.session import fleet_of
from triptych_client.fleet_plan import FleetPlan

ROOT = Path(__file__).parents[1]
FLEET = """
[common]
trace_file = "spans.jsonl"
[controller]
backlog_jobs_max = 5
[workers]
model = "owner/name"
dtype = "bfloat16"
[workers.components.vae]
dtype = "float32"
tiling = true
[transformer]
count = 2
device = "cuda:1"
threads = 3
[transformer.process]
matmul_precision = "high"
[transformer.components.transformer]
attention = "_native_math"
compile = { what = "repeated_blocks", fullgraph = true }
[[transformer.warm_up]]
height = 64
[decoder.components.vae]
tiling = { tile_sample_min_height = 64 }
"""


def plan_of(path: Path) -> FleetPlan:
    file = fleet_file.read(str(path))
    return FleetPlan(**{"state": "state", **file.settings}, roles=file.roles)


def workers_of(plan: FleetPlan) -> dict[str, WorkerConfig]:
    """What each worker reads from its command line."""
    return {spec.name: load(WorkerConfig, spec.argv[4:], {}) for spec in plan.workers("127.0.0.1:1")}


def test_a_fleets_file_says_what_each_process_gets(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    plan = plan_of(path)
    workers = workers_of(plan)
    assert list(workers) == ["encoder-0", "transformer-0", "transformer-1", "decoder-0"]
    assert {(one.model, one.dtype, one.trace_file) for one in workers.values()} == {
        ("owner/name", "bfloat16", "spans.jsonl")
    }
    assert plan.config.backlog_jobs_max == 5
    assert (workers["transformer-1"].device, workers["transformer-1"].threads) == ("cuda:1", 3)
    assert workers["encoder-0"].device == "cpu"
    means = {name: of_json("means", one.means) for name, one in workers.items()}
    assert means["encoder-0"].of("vae").tiling is True
    assert means["encoder-0"].of("vae").dtype == means["decoder-0"].of("vae").dtype == "float32"
    assert means["decoder-0"].of("vae").tiling == {"tile_sample_min_height": 64}, "its own section stands first"
    transformer = means["transformer-0"]
    assert transformer.of("transformer").compile is not None
    assert (transformer.process.matmul_precision, transformer.warm_up[0].height) == ("high", 64)
    assert means["transformer-0"] == means["transformer-1"] != means["encoder-0"]


def test_the_file_of_one_service_has_the_same_tables(tmp_path: Path) -> None:
    path = tmp_path / "transformer.toml"
    path.write_text('model = "m"\nthreads = 2\n[components.transformer]\nattention = "native"\n')
    config = load(WorkerConfig, ["--config", str(path)], {})
    assert (config.model, config.threads) == ("m", 2)
    assert of_json("means", config.means).of("transformer").attention == "native"
    json_text = json.dumps({"components": {"vae": {"slicing": True}}})
    config = load(WorkerConfig, ["--config", str(path)], {"TRIPTYCH_MEANS": json_text})
    assert of_json("means", config.means).of("vae").slicing, "the environment stands before the file"


MISTAKES = {
    "section": (
        "[transfomer]\ncount = 1",
        r"fleet.toml: transfomer is .*one of the sections .*did you mean transformer",
    ),
    "no table": ("decoder = 3", r"decoder is 3; accepted: a table"),
    "setting": ('[encoder]\ndevcie = "cpu"', r"fleet.toml: encoder.devcie is 'cpu'; .*did you mean device"),
    "count": ("[encoder]\ncount = 0", r"encoder.count is 0; accepted: 1 to 64"),
    "type": ('[encoder]\nthreads = "2"', r"encoder.threads is '2'; accepted: a value of type int"),
    "range": ("[encoder]\nthreads = -1", r"encoder.threads is -1; accepted: 0 or more"),
    "the model of a role": ('[encoder]\nmodel = "m"', r"encoder.model is 'm'; accepted: no such key here"),
    "controller": ("[controller]\ndevice = 1", r"controller.device is 1; accepted: one of the keys"),
    "means as text": ('[workers]\nmeans = "{}"', r"workers.means is '\{\}'; accepted: one of the keys"),
    "means' key": (
        "[decoder.components.vae]\ntilling = true",
        r"decoder.components.vae.tilling is True; .*did you mean tiling\?",
    ),
    "means' type": (
        "[decoder.components.vae]\ntiling = 3",
        r"components.vae.tiling is 3; accepted: true or false or a table",
    ),
    "choice": (
        '[transformer.components.transformer]\nattention = "_native_mat"',
        r"attention is '_native_mat'; .*did you mean '_native_math'",
    ),
    "cache": (
        '[transformer.components.transformer]\ncache = { config = "FirstBlockCache" }',
        r"cache.config is 'FirstBlockCache'; .*did you mean 'FirstBlockCacheConfig'",
    ),
    "cache's option": (
        '[transformer.components.transformer]\ncache = { config = "FirstBlockCacheConfig", treshold = 1 }',
        r"cache.treshold is 1; .*did you mean threshold",
    ),
    "quantization without a name": (
        "[transformer.components.transformer]\nquantization = { load_in_4bit = true }",
        r"quantization.config is None; accepted: one of TorchAoConfig",
    ),
    "a file without its configuration": (
        '[transformer.components.transformer]\ngguf = "a.gguf"',
        r"gguf is 'a.gguf'; accepted: a file, together with",
    ),
    "two places": (
        '[transformer.components.transformer]\ndevice = "cpu"\noffload = {}',
        r"offload is .*accepted: nothing beside device",
    ),
    "sequential and more": (
        '[transformer.components.transformer.offload]\nkind = "sequential"\nuse_stream = true',
        r"offload.kind is 'sequential'; accepted: 'group'",
    ),
    "warm-ups": ("[transformer]\nwarm_up = 3", r"transformer.warm_up is 3; accepted: at most 32 tables"),
    "a warm-up's bound": ("[[transformer.warm_up]]\nheight = -1", r"warm_up\[0\].height is -1; accepted: 0 to 65536"),
    "node": ("[encoder.process]\nnuma_node = -2", r"process.numa_node is -2; accepted: -1 to 1023"),
    "no TOML": ("= =", "fleet is .*a readable TOML file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_place(mistake: str, tmp_path: Path, capfd: Any) -> None:
    text, named = MISTAKES[mistake]
    path = tmp_path / "fleet.toml"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=named):
        fleet_file.read(str(path))
    assert main(["config", "check", str(path)]) == 2
    assert "accepted: " in capfd.readouterr().err


def test_check_says_what_a_right_file_starts(tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    assert main(["config", "check", str(path)]) == 0
    assert capfd.readouterr().out == f"{path} is right: a controller, 1 encoder, 2 transformers, 1 decoder\n"


def test_check_finds_settings_that_contradict_each_other(tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text('[controller]\nlease_s = 5\njournal = "postgresql://db/x"\n')
    assert main(["config", "check", str(path)]) == 2
    assert "result_url is ''" in capfd.readouterr().err


@pytest.mark.parametrize("example", sorted((ROOT / "deploy").glob("*fleet*.toml")))
def test_the_examples_are_right(example: Path, capfd: Any) -> None:
    assert main(["config", "check", str(example)]) == 0


def test_flags_stand_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    argv = ["up", "--fleet", str(path), "--transformers", "1", "--dtype-decoder", "float16", "--dtype", "float32"]
    args = build_parser(argv).parse_args(argv)
    wanted = fleet_of(args, {"dtype": "float32"})
    workers = workers_of(FleetPlan(**{"state": "state", **wanted.settings}, roles=wanted.roles))
    assert {name: one.dtype for name, one in workers.items()} == {
        "encoder-0": "float32",
        "transformer-0": "float32",
        "decoder-0": "float16",
    }


def test_one_job_takes_nothing_of_the_controllers(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    file = fleet_file.read(str(path)).for_one_job()
    assert {plan.count for plan in file.roles.values()} == {1}
    assert file.settings.keys() == {"trace_file", "model", "dtype", "means"}
    assert file.means_of("decoder").of("vae").tiling == {"tile_sample_min_height": 64}
    assert file.means_of("encoder").of("vae").tiling is True


def test_no_file_says_nothing() -> None:
    assert fleet_file.read("").means_of("encoder") == RoleMeans()


def test_means_that_are_no_json_or_too_long_are_refused() -> None:
    for text in ("{", "[]", '"x"', json.dumps({"x" * 70_000: 1})):
        with pytest.raises(InvalidRequest, match="means is "):
            of_json("means", text)
    with pytest.raises(InvalidRequest, match=r"componets is .*did you mean components"):
        of_tables({"componets": {}})


def test_cores_of_a_node_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    (tmp_path / "node1").mkdir()
    (tmp_path / "node1" / "cpulist").write_text("0-2,8,10-11\n")
    assert cores_of(1, tmp_path) == {0, 1, 2, 8, 10, 11}
    with pytest.raises(InvalidRequest, match="numa_node is 0; accepted: one of this machine's nodes: 1"):
        cores_of(0, tmp_path)
    with pytest.raises(InvalidRequest, match="it tells of none"):
        cores_of(0, tmp_path / "elsewhere")


def test_the_options_are_listed(capfd: Any) -> None:
    assert main(["config", "options", "--json"]) == 0
    listed = {one["key"]: one for one in json.loads(capfd.readouterr().out)}
    assert listed["components.NAME.cache"]["bits"] == "lossy"
    assert listed["components.NAME.offload.kind"]["bits"] == "keeps"
    assert "encoder and decoder" in listed["components.NAME.tiling"]["roles"]


def test_the_document_says_of_each_option_what_it_does_to_bits() -> None:
    text = (ROOT / "docs" / "means.md").read_text()
    said = dict(re.findall(r"^\| `(\w+)` \| .* \| ([^|]+) \|$", text, re.MULTILINE))
    for key, _roles, bits, _about in options():
        table, _, name = key.replace("components.NAME", "components").partition(".")
        if table == "warm_up[]":
            assert f"`{name}`" in text, key
        elif "." in name:  # of a table of its own, which the text explains
            assert f"`{name.partition('.')[2]}" in text or f"{name.partition('.')[2]} = " in text, key
        else:
            assert said[name].startswith(bits), (key, said[name])
