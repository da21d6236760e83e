"""All settings.

A process builds one frozen dataclass in its `__main__`. A field takes its value from the command line (`--field`), the
environment (`TRIPTYCH_<FIELD>`), a TOML file (`--config`) or its default: the first of them that has one. A setting is
declared here only: the flags of the services, of `triptych up` and of `triptych generate` are made of these fields.
An unknown key, or a value of the wrong type or range, is an InvalidRequest that names it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from triptych import addresses, limits
from triptych.errors import InvalidRequest
from triptych.means import options, tables
from triptych.means.options import DTYPES

Config = TypeVar("Config", bound="ProcessConfig")
Field = dataclasses.Field[Any]

MOVERS = ("local", "mooncake", "rpc")
RINGS = ("auto", "verbs", "rpc")
NONFINITE = ("fail", "allow")
BATCHING = ("equal", "always", "off")
MOONCAKE = ("auto", "rdma", "tcp")
MEDIA_URL_PRIVATE = ("refuse", "allow")
PARALLEL = ("ulysses", "ring", "cfg")

HEARTBEATS_MIN = 2
"""Reports that fit into the time after which a worker counts as dead."""
DAY_S = 86_400.0
JOURNAL_FILE = "journal.db"
"""The journal in a controller's state folder."""
RESULTS_FOLDER = "results"
"""The results in a controller's state folder, where no result URL says otherwise."""
LEASE_S_MIN = 1.0
"""Shorter, and a busy disk would look like a controller that is gone."""
BYTES_MAX = 2**50
"""A pebibyte: more than any disk or memory here, and whole in a float."""


def number(default: float, about: str, minimum: float, maximum: float) -> Any:
    """A setting that is a number, with its purpose and its bounds. It has the type of its default."""
    return field(default=default, metadata={"about": about, "minimum": minimum, "maximum": maximum})


def text(
    default: str, about: str, *, among: Sequence[str] = (), check: Callable[[str, str], object] | None = None
) -> Any:
    """A setting that is a text, with its purpose: one `among` some, or one that `check` takes.

    `check` gets the field's name and a text that isn't empty, and raises InvalidRequest.
    """
    return field(default=default, metadata={"about": about, "among": among, "check": check})


_to_serve = functools.partial(addresses.parse, to_serve=True)


@dataclass(frozen=True)
class ProcessConfig:
    """What every process of a fleet has."""

    address: str = text("127.0.0.1:0", "host:port to serve on; port 0 takes a free one", check=_to_serve)
    tls: str = text("", "folder of ca.crt, tls.crt and tls.key: mutual TLS on address; default: no TLS")
    tokens: str = text("", "file of clients' tokens; without it and without tls, any caller is served")
    client_address: str = text(
        "", "host:port, TLS as well, for clients that have a token and no certificate", check=_to_serve
    )
    trace_file: str = text("", "append spans to this file as OTLP JSON lines")
    hold_file: str = text("", "append each new longest hold of the event loop to this file")
    metrics_port: int = number(0, "serve Prometheus metrics on this port; 0 for none", 0, 65_535)
    lame_duck_s: float = number(
        5.0, "time between SIGTERM and the drain: NOT_SERVING, but served, until balancers have seen it", 0, DAY_S
    )
    drain_timeout_s: float = number(600.0, "time for running jobs to finish after SIGTERM", 0, 30 * DAY_S)
    rings: str = text("auto", "queues over RDMA (verbs), through the controller (rpc), or what works", among=RINGS)
    rdma_device: str = text("", "RDMA device as DEVICE[:PORT[:GID_INDEX]]; default: the first that works")

    def check(self) -> None:
        """Check the settings against each other. Raises InvalidRequest."""


@dataclass(frozen=True)
class ControllerConfig(ProcessConfig):
    """Settings of the controller."""

    address: str = text("127.0.0.1:7070", "host:port to serve on; port 0 takes a free one", check=_to_serve)
    state: str = text(".triptych", "folder of the job journal")
    journal: str = text(
        "", "postgresql:// URL of the job journal; default: SQLite in state", check=addresses.parse_database
    )
    lease_s: float = number(
        0.0, "controllers that share a journal: one that is silent for so long is replaced; 0 for one alone", 0, 3600
    )
    result_url: str = text("", "fsspec URL where decoders store results; default: results/ in the state folder")
    heartbeat_interval_s: float = number(1.0, "time between two reports of a worker", 0.05, 600)
    worker_timeout_s: float = number(10.0, "silence after which a worker counts as dead", 0.2, DAY_S)
    stall_timeout_s: float = number(900.0, "a job without progress for so long counts its worker dead", 1, 30 * DAY_S)
    attempts_max: int = number(4, "attempts after which a job fails", 1, 1000)
    backlog_jobs_max: int = number(10_000, "unfinished jobs after which CreateJob is refused", 1, 1_000_000)
    watches_max: int = number(10_000, "open WatchJob streams after which one more is refused", 1, 1_000_000)
    work_max: float = number(1e12, "most outputs x frames x pixels x steps of one job; 0 for no limit", 0, 1e18)
    result_bytes_max: float = number(
        float(2**32), "most bytes of pixels of one job's results, as float32; 0 for no limit", 0, BYTES_MAX
    )
    client_bytes_max: int = number(2**31, "bytes of one client's unfinished requests; 0 for no limit", 0, BYTES_MAX)
    keep_days: float = number(30.0, "keep finished jobs and their results so long; 0 for no limit", 0, 36_500)
    keep_jobs: int = number(10_000, "keep at most so many finished jobs of each client; 0 for no limit", 0, 10_000_000)
    keep_bytes: int = number(
        20 * 2**30, "keep at most so many bytes of each client's results; 0 for no limit", 0, BYTES_MAX
    )
    media_url_schemes: str = text(
        "", "fetch media of URLs of these schemes, with commas, for example https,s3; default: none"
    )
    media_url_hosts: str = text(
        "", "fetch from these hosts only, with commas (*.example.org, example.org:8443), and from these buckets"
    )
    media_url_private: str = text("refuse", "addresses of media that aren't public", among=MEDIA_URL_PRIVATE)
    media_url_s: float = number(20.0, "time for all URLs of one request", 0.1, 600)

    def check(self) -> None:
        """Check the settings against each other. Raises InvalidRequest.

        A worker may miss a report without counting as dead; silence must be found sooner than a job that stands still;
        a client must be able to send the largest request; controllers that share a journal share its results.
        """
        least_s = HEARTBEATS_MIN * self.heartbeat_interval_s
        if self.worker_timeout_s < least_s:
            accepted = f"{least_s:g} or more: {HEARTBEATS_MIN} times heartbeat_interval_s"
            raise InvalidRequest("worker_timeout_s", self.worker_timeout_s, accepted)
        if self.stall_timeout_s < self.worker_timeout_s:
            accepted = f"{self.worker_timeout_s:g} or more: worker_timeout_s"
            raise InvalidRequest("stall_timeout_s", self.stall_timeout_s, accepted)
        if 0 < self.lease_s < LEASE_S_MIN:
            raise InvalidRequest("lease_s", self.lease_s, f"0, or {LEASE_S_MIN:g} or more")
        if self.lease_s and self.journal and not self.result_url:
            accepted = "a URL that all controllers of the journal reach: a state folder is one controller's own"
            raise InvalidRequest("result_url", "", accepted)
        if 0 < self.client_bytes_max < limits.REQUEST_BYTES_MAX:
            accepted = f"0, or {limits.REQUEST_BYTES_MAX} or more: the largest request"
            raise InvalidRequest("client_bytes_max", self.client_bytes_max, accepted)
        if self.client_address and self.client_address == self.address and not self.address.endswith(":0"):
            raise InvalidRequest("client_address", self.client_address, "another port than that of address")


@dataclass(frozen=True)
class ModelConfig(ProcessConfig):
    """What every process has that holds a model, or a part of one, and rooms."""

    model: str = text("", "folder or hub id of a diffusers pipeline")
    revision: str = text("", "revision of the hub's repository")
    variant: str = text("", "variant of the weights' files, for example fp16")
    workflows: str = text(
        "", "load only these workflows of the pipeline, with commas, for example text2video; default: all"
    )
    device: str = text("cpu", "torch device of this role, for example cuda:0")
    parallel: str = text(
        "",
        "transformers: divide each job's sequence (ulysses, ring) or guidance (cfg) among devices",
        among=("", *PARALLEL),
    )
    devices: str = text("", "those devices with commas, for example cuda:0,cuda:1; each gets a process")
    parallel_timeout_s: float = number(300.0, "processes that wait for one of theirs so long give up", 1, DAY_S)
    dtype: str = text("float32", "element type of the weights", among=DTYPES)
    threads: int = number(0, "torch threads; 0 leaves torch's default", 0, 1024)
    arena_bytes: int = number(
        2**30, "size of the arena in /dev/shm; pages are taken when they are used", 2**16, BYTES_MAX
    )
    advertise_host: str = text(
        "", "host name under which others reach this process; default: that of address", check=addresses.parse_host
    )

    @property
    def host(self) -> str:
        """The host under which others reach this process, as it stands before a port."""
        if self.advertise_host:
            return addresses.bracketed(addresses.parse_host("advertise_host", self.advertise_host))
        return addresses.bracketed(addresses.parse("address", self.address, to_serve=True).host)

    @property
    def workflow_names(self) -> list[str]:
        """The workflows to load; none for all."""
        return [name.strip() for name in self.workflows.split(",") if name.strip()]

    @property
    def device_names(self) -> list[str]:
        """The devices that share each job; none where one device does it all."""
        return [name.strip() for name in self.devices.split(",") if name.strip()]

    def check(self) -> None:
        """Refuse to advertise an address that means "all of this machine": others would reach themselves by it. Refuse
        to divide jobs among fewer than two devices."""
        if bool(self.parallel) != (len(self.device_names) > 1):
            raise InvalidRequest("devices", self.devices, "two or more with commas where parallel is set, else none")
        if addresses.Address(self.host.strip("[]"), 0).is_unspecified:
            accepted = f"the name or address under which others reach this process, where address is {self.address}"
            raise InvalidRequest("advertise_host", self.advertise_host, accepted)


@dataclass(frozen=True)
class WorkerConfig(ModelConfig):
    """Settings of an encoder, transformer or decoder."""

    adapters: str = text("", "folder of adapters (LoRA) that jobs may use; read at the start; see docs/adapters.md")
    adapter_ids: str = text(
        "", "adapters of the hub that jobs may use, with commas: OWNER/NAME[@REVISION][:FILE]; default: none"
    )
    adapter_bytes_max: int = number(
        2**32, "bytes of adapters that a role keeps loaded between jobs; the least recently used goes", 0, BYTES_MAX
    )
    controller: str = text(
        "127.0.0.1:7070", "host:port of the controller; several with commas", check=addresses.parse_several
    )
    token_file: str = text("", "file of this worker's own token, where it has no certificate")
    nonfinite: str = text("fail", "a stage that makes NaN or infinity fails the job, or allows it", among=NONFINITE)
    fake_stage_seconds: float = number(
        0.0, "load tests: no model, but a stand-in whose transformer takes so long; 0 for the model", 0, DAY_S
    )
    fake_model: str = text("fake", "load tests: that stand-in's name; each name is another model with other results")
    release_timeout_s: float = number(30.0, "time that a leaving worker gives others to read its rooms", 0, DAY_S)
    instance_id: str = text(
        "", "identity of this start of the process, under which its launcher reports its end; default: a random one"
    )
    room_bytes_per_s_min: float = number(
        limits.ROOM_BYTES_PER_S_MIN, "slowest network between workers that is waited for, in bytes a second", 1, 1e12
    )
    text_encoder_engine: str = text(
        "",
        "encoders: where text encoders run, as process:HOST:PORT or vllm:HOST:PORT; default: in this process",
        check=addresses.parse_engine,
    )
    text_encoder_absent: str = text(
        "wait", "a job whose text encoder's process is absent waits, or runs it locally", among=("wait", "local")
    )
    text_encoder_wait_s: float = number(300.0, "longest wait for an absent text encoder", 0, DAY_S)
    mover: str = text("", "force one mover instead of choosing per room", among=("", *MOVERS))
    mooncake: str = text("auto", "Mooncake's protocol; auto takes rdma where there is a device", among=MOONCAKE)
    means: str = text(
        "", "how models are placed and run: JSON of the tables that a --config file has for it", check=options.of_json
    )


@dataclass(frozen=True)
class TextEncoderConfig(ModelConfig):
    """Settings of a process that runs text encoders for many encoders."""

    batching: str = text(
        "equal", "run calls of one shape as one: where that keeps their bits, always, or off", among=BATCHING
    )
    batch_size_max: int = number(8, "calls that run as one", 1, 1024)
    batch_wait_ms_max: float = number(0.0, "how long an idle text encoder waits for more calls", 0, 10_000)
    embeddings_bytes_max: int = number(
        2**28, "bytes of embeddings that are kept for equal calls, within the arena; 0 keeps none", 0, BYTES_MAX
    )


def load(cls: type[Config], argv: Sequence[str] | None, environ: Mapping[str, str] = os.environ) -> Config:
    """Build a configuration from its sources.

    Raises InvalidRequest for an unknown key or a bad value; `--help` and bad flags exit as argparse does (0, 2).
    """
    started_as = sys.modules["__main__"].__spec__
    parser = argparse.ArgumentParser(f"python -P -m {started_as.parent}" if started_as else None)
    parser.add_argument("--config", metavar="FILE", help="TOML file of settings")
    fields = dataclasses.fields(cls)
    add_flags(parser, "settings", fields)
    flags = vars(parser.parse_args(argv))
    values = _read_toml(Path(flags["config"]), fields) if flags["config"] else {}
    for f in fields:
        variable = "TRIPTYCH_" + f.name.upper()
        if variable in environ:
            values[f.name] = environ[variable]
        if flags[f.name] is not None:
            values[f.name] = flags[f.name]
    config = cls(**{f.name: _convert(f, values[f.name]) for f in fields if f.name in values})
    config.check()
    return config


def add_flags(
    parser: argparse.ArgumentParser,
    title: str,
    fields: Iterable[Field],
    names: Mapping[str, str] | None = None,
    abouts: Mapping[str, str] | None = None,
) -> None:
    """Add a group of flags, one for each setting. The value of one that isn't given is None.

    `names` and `abouts` give settings another flag and another help than their own.
    """
    group = parser.add_argument_group(title)
    for f in fields:
        flag = (names or {}).get(f.name, f.name)
        about = (abouts or {}).get(f.name, f.metadata["about"])
        if f.default != "" and "default" not in about:
            about += f" (default: {f.default:g})" if isinstance(f.default, float) else f" (default: {f.default})"
        among = ",".join(filter(None, f.metadata.get("among", ())))
        metavar = f"{{{among}}}" if among else flag.rpartition("_")[2].upper()
        group.add_argument(_flag(flag), dest=f.name, metavar=metavar, help=about)


def given(flags: Mapping[str, Any], fields: Iterable[Field], names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The settings that were given on the command line, by field. Raises InvalidRequest that names the flag."""
    told = [f for f in fields if flags[f.name] is not None]
    return {f.name: _convert(f, flags[f.name], (names or {}).get(f.name, "")) for f in told}


def as_flags(settings: Mapping[str, object]) -> list[str]:
    """Settings as a command line. Empty ones are left out, so that the process takes its default."""
    flags: list[str] = []
    for name, value in settings.items():
        if value != "":
            text = str(value)
            flags += [f"{_flag(name)}={text}"] if text.startswith("-") else [_flag(name), text]  # or it would be a flag
    return flags


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _read_toml(path: Path, fields: Sequence[Field]) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidRequest("config", str(path), f"a readable TOML file ({error})") from error
    return check_table(f"{path}: ", values, fields)


def check_table(where: str, table: Mapping[str, Any], fields: Sequence[Field]) -> dict[str, Any]:
    """Settings from a table of a file: those of `fields`, with the tables of means as the JSON of the setting `means`.

    `where` stands before each key in messages. Raises InvalidRequest.
    """
    field_by_name = {f.name: f for f in fields}
    known = {*field_by_name, *options.TABLES} - {"means"} if "means" in field_by_name else field_by_name.keys()
    values: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise InvalidRequest(f"{where}{key}", value, tables.accepted_keys(key, known))
        if key not in field_by_name:
            given[key] = value
            continue
        kind: type = type(field_by_name[key].default)
        if type(value) not in ((int, float) if kind is float else (kind,)):
            raise InvalidRequest(f"{where}{key}", value, f"a value of type {kind.__name__}")
        values[key] = _convert(field_by_name[key], value, f"{where}{key}")
    if given:
        options.of_tables(given, where)
        values["means"] = json.dumps(given, sort_keys=True)
    return values


def _convert(f: Field, value: Any, name: str = "") -> Any:
    """A setting's value from its text, or from one of its type. `name` is what the caller calls it."""
    name = name or f.name
    kind: Any = type(f.default)
    try:
        converted = kind(value)
    except ValueError as error:
        raise InvalidRequest(name, value, f"a value of type {kind.__name__}") from error
    minimum, maximum, among, check = map(f.metadata.get, ("minimum", "maximum", "among", "check"))
    if among and converted not in among:
        raise InvalidRequest(name, value, "one of " + ", ".join(repr(a) for a in among))
    if minimum is not None and not converted >= minimum:
        raise InvalidRequest(name, value, f"{minimum} or more")
    if maximum is not None and converted > maximum:
        raise InvalidRequest(name, value, f"{minimum} to {maximum:g}")
    if converted and check is not None:
        check(name, converted)
    return converted
