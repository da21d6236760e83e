"""All settings, and the only file that reads the environment.

A process builds one frozen dataclass in its `__main__`. A field takes its value from the command line (`--field`), the
environment (`TRIPTYCH_<FIELD>`), a TOML file (`--config`) or its default: the first of them that has one. A setting is
declared here only: the flags of the services, of `triptych up` and of `triptych generate` are made of these fields.
An unknown key, or a value of the wrong type or range, is an InvalidRequest that names it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from triptych import addresses, limits
from triptych.errors import InvalidRequest

Config = TypeVar("Config", bound="ProcessConfig")
Field = dataclasses.Field[Any]

DTYPES = ("float32", "bfloat16", "float16")
MOVERS = ("local", "mooncake", "rpc")
RINGS = ("auto", "verbs", "rpc")
NONFINITE = ("fail", "allow")
MOONCAKE = ("auto", "rdma", "tcp")


HEARTBEATS_MIN = 2
"""Reports that fit into the time after which a worker counts as dead."""
DAY_S = 86_400.0
JOURNAL_FILE = "journal.db"
"""The journal in a controller's state folder."""
RESULTS_FOLDER = "results"
"""The results in a controller's state folder, where no result URL says otherwise."""
BYTES_MAX = 2**50
"""A pebibyte: more than any disk or memory here, and whole in a float."""


def setting(
    default: Any,
    about: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    among: Sequence[str] = (),
    check: Callable[[str, str], object] | None = None,
) -> Any:
    """A field of a configuration: its default, its purpose, and the values that it takes.

    `check` is asked about a text that isn't empty, with the field's name, and raises InvalidRequest.
    """
    known = {"about": about, "minimum": minimum, "maximum": maximum, "among": among, "check": check}
    return field(default=default, metadata=known)


_to_serve = functools.partial(addresses.parse, to_serve=True)


@dataclass(frozen=True)
class ProcessConfig:
    """What every process of a fleet has."""

    address: str = setting("127.0.0.1:0", "host:port to serve on; port 0 takes a free one", check=_to_serve)
    tls: str = setting("", "folder of ca.crt, tls.crt and tls.key: mutual TLS on address; default: no TLS")
    tokens: str = setting("", "file of clients' tokens; without it and without tls, any caller is served")
    client_address: str = setting(
        "", "host:port, TLS as well, for clients that have a token and no certificate", check=_to_serve
    )
    trace_file: str = setting("", "append spans to this file as OTLP JSON lines")
    hold_file: str = setting("", "append each new longest hold of the event loop to this file")
    metrics_port: int = setting(0, "serve Prometheus metrics on this port; 0 for none", minimum=0, maximum=65_535)
    drain_timeout_s: float = setting(
        600.0, "time for running jobs to finish after SIGTERM", minimum=0, maximum=30 * DAY_S
    )
    rings: str = setting("auto", "queues over RDMA (verbs), through the controller (rpc), or what works", among=RINGS)
    rdma_device: str = setting("", "RDMA device as DEVICE[:PORT[:GID_INDEX]]; default: the first that works")

    def check(self) -> None:
        """Check the settings against each other. Raises InvalidRequest."""


@dataclass(frozen=True)
class ControllerConfig(ProcessConfig):
    """Settings of the controller."""

    address: str = setting("127.0.0.1:7070", "host:port to serve on; port 0 takes a free one", check=_to_serve)
    state: str = setting(".triptych", "folder of the job journal")
    result_url: str = setting("", "fsspec URL where decoders store results; default: results/ in the state folder")
    heartbeat_interval_s: float = setting(1.0, "time between two reports of a worker", minimum=0.05, maximum=600)
    worker_timeout_s: float = setting(10.0, "silence after which a worker counts as dead", minimum=0.2, maximum=DAY_S)
    stall_timeout_s: float = setting(
        900.0, "a job without progress for so long counts its worker dead", minimum=1, maximum=30 * DAY_S
    )
    attempts_max: int = setting(4, "attempts after which a job fails", minimum=1, maximum=1000)
    backlog_jobs_max: int = setting(
        10_000, "unfinished jobs after which CreateJob is refused", minimum=1, maximum=1_000_000
    )
    watches_max: int = setting(
        10_000, "open WatchJob streams after which one more is refused", minimum=1, maximum=1_000_000
    )
    work_max: float = setting(
        1e12, "most outputs x frames x pixels x steps of one job; 0 for no limit", minimum=0, maximum=1e18
    )
    result_bytes_max: float = setting(
        float(2**32),
        "most bytes of pixels of one job's results, as float32; 0 for no limit",
        minimum=0,
        maximum=BYTES_MAX,
    )
    client_bytes_max: int = setting(
        2**31, "bytes of one client's unfinished requests; 0 for no limit", minimum=0, maximum=BYTES_MAX
    )
    keep_days: float = setting(
        30.0, "keep finished jobs and their results so long; 0 for no limit", minimum=0, maximum=36_500
    )
    keep_jobs: int = setting(
        10_000, "keep at most so many finished jobs of each client; 0 for no limit", minimum=0, maximum=10_000_000
    )
    keep_bytes: int = setting(
        20 * 2**30,
        "keep at most so many bytes of each client's results; 0 for no limit",
        minimum=0,
        maximum=BYTES_MAX,
    )

    def check(self) -> None:
        """Check the settings against each other. Raises InvalidRequest.

        A worker may miss a report without counting as dead; silence must be found sooner than a job that stands still;
        a client must be able to send the largest request.
        """
        least_s = HEARTBEATS_MIN * self.heartbeat_interval_s
        if self.worker_timeout_s < least_s:
            accepted = f"{least_s:g} or more: {HEARTBEATS_MIN} times heartbeat_interval_s"
            raise InvalidRequest("worker_timeout_s", self.worker_timeout_s, accepted)
        if self.stall_timeout_s < self.worker_timeout_s:
            accepted = f"{self.worker_timeout_s:g} or more: worker_timeout_s"
            raise InvalidRequest("stall_timeout_s", self.stall_timeout_s, accepted)
        if 0 < self.client_bytes_max < limits.REQUEST_BYTES_MAX:
            accepted = f"0, or {limits.REQUEST_BYTES_MAX} or more: the largest request"
            raise InvalidRequest("client_bytes_max", self.client_bytes_max, accepted)
        if self.client_address and self.client_address == self.address and not self.address.endswith(":0"):
            raise InvalidRequest("client_address", self.client_address, "another port than that of address")


@dataclass(frozen=True)
class WorkerConfig(ProcessConfig):
    """Settings of an encoder, transformer or decoder."""

    model: str = setting("", "folder or hub id of a diffusers pipeline")
    revision: str = setting("", "revision of the hub's repository")
    variant: str = setting("", "variant of the weights' files, for example fp16")
    workflows: str = setting(
        "", "load only these workflows of the pipeline, with commas, for example text2video; default: all"
    )
    controller: str = setting("127.0.0.1:7070", "host:port of the controller", check=addresses.parse)
    token_file: str = setting("", "file of this worker's own token, where it has no certificate")
    device: str = setting("cpu", "torch device of this role, for example cuda:0")
    dtype: str = setting("float32", "element type of the weights", among=DTYPES)
    nonfinite: str = setting("fail", "a stage that makes NaN or infinity fails the job, or allows it", among=NONFINITE)
    fake_stage_seconds: float = setting(
        0.0,
        "load tests: no model, but a stand-in whose transformer takes so long; 0 for the model",
        minimum=0,
        maximum=DAY_S,
    )
    fake_model: str = setting("fake", "load tests: that stand-in's name; each name is another model with other results")
    release_timeout_s: float = setting(
        30.0, "time that a leaving worker gives others to read its rooms", minimum=0, maximum=DAY_S
    )
    threads: int = setting(0, "torch threads; 0 leaves torch's default", minimum=0, maximum=1024)
    arena_bytes: int = setting(
        2**30,
        "size of the arena in /dev/shm; pages are taken when they are used",
        minimum=2**16,
        maximum=BYTES_MAX,
    )
    advertise_host: str = setting(
        "", "host name under which others reach this worker; default: that of address", check=addresses.parse_host
    )
    instance_id: str = setting(
        "", "identity of this start of the process, under which its launcher reports its end; default: a random one"
    )
    room_bytes_per_s_min: float = setting(
        limits.ROOM_BYTES_PER_S_MIN,
        "slowest network between workers that is waited for, in bytes a second",
        minimum=1,
        maximum=1e12,
    )
    mover: str = setting("", "force one mover instead of choosing per room", among=("", *MOVERS))
    mooncake: str = setting("auto", "Mooncake's protocol; auto takes rdma where there is a device", among=MOONCAKE)

    @property
    def host(self) -> str:
        """The host under which others reach this worker, as it stands before a port."""
        if self.advertise_host:
            return addresses.bracketed(addresses.parse_host("advertise_host", self.advertise_host))
        return addresses.bracketed(addresses.parse("address", self.address, to_serve=True).host)

    @property
    def workflow_names(self) -> list[str]:
        """The workflows to load; none for all."""
        return [name.strip() for name in self.workflows.split(",") if name.strip()]

    def check(self) -> None:
        """Refuse to advertise an address that means "all of this machine": others would reach themselves by it."""
        if not self.advertise_host and addresses.parse("address", self.address, to_serve=True).is_unspecified:
            accepted = f"the name or address under which others reach this worker, where address is {self.address}"
            raise InvalidRequest("advertise_host", "", accepted)


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
        among = ",".join(filter(None, f.metadata["among"]))
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


def otlp_signals(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """The signals, `traces` and `metrics`, for which the standard OTEL_* variables name a collector.

    Raises InvalidRequest when they ask for a protocol other than gRPC.
    """
    named = set()
    for signal in ("traces", "metrics"):
        own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_"
        endpoint = environ.get(own + "ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        if not endpoint or environ.get(f"OTEL_{signal.upper()}_EXPORTER", "otlp") != "otlp":
            continue
        protocol = environ.get(own + "PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
        if protocol != "grpc":
            raise InvalidRequest("OTEL_EXPORTER_OTLP_PROTOCOL", protocol, "'grpc'")
        named.add(signal)
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return frozenset() if disabled else frozenset(named)


def otlp_options(signal: str, environ: Mapping[str, str] = os.environ) -> tuple[tuple[str, Any]]:
    """Options of the channel to a signal's collector: by which proxy it is reached, if by any.

    Raises InvalidRequest for an endpoint that is no URL and no address.
    """
    name = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"
    name = name if environ.get(name) else "OTEL_EXPORTER_OTLP_ENDPOINT"
    host = addresses.host_of_url(name, environ.get(name, ""))
    return addresses.proxy_options(proxy_for(host, None, environ))


def proxy_for(host: str, named: str | None = None, environ: Mapping[str, str] = os.environ) -> addresses.Proxy | None:
    """The proxy for calls that leave the fleet, from a client or to a collector: `named`, or else `TRIPTYCH_PROXY`.

    None to loopback, and none to what `no_proxy` names. Raises InvalidRequest.
    """
    proxy = addresses.parse_proxy("proxy", environ.get("TRIPTYCH_PROXY", "") if named is None else named)
    exempt = environ.get("no_grpc_proxy", environ.get("no_proxy", ""))
    return None if addresses.is_loopback(host) or addresses.is_exempt(host, exempt) else proxy


def ignored_proxy(environ: Mapping[str, str] = os.environ) -> str:
    """The variable that names a proxy for other programs, which isn't used here; empty where there is none."""
    return next((name for name in ("grpc_proxy", "https_proxy", "http_proxy") if environ.get(name)), "")


@dataclass(frozen=True)
class ClientAccess:
    """How a client proves who it is; each empty where it doesn't."""

    tls: str = ""
    token_file: str = ""
    token: str = ""


def client_access(environ: Mapping[str, str] = os.environ) -> ClientAccess:
    """From `TRIPTYCH_TLS`, `TRIPTYCH_TOKEN_FILE` and `TRIPTYCH_TOKEN`."""
    return ClientAccess(*(environ.get(f"TRIPTYCH_{name}", "") for name in ("TLS", "TOKEN_FILE", "TOKEN")))


def module_path(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """PYTHONPATH for a service, where it is set: without its empty entries, which mean the current folder."""
    if "PYTHONPATH" not in environ:
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, environ["PYTHONPATH"].split(os.pathsep)))}


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The folder for files that can be made again, by the XDG convention; None for a user without a home."""
    named = environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):
        return Path(named) / "triptych"
    home = environ.get("HOME", "")
    return Path(home) / ".cache" / "triptych" if os.path.isabs(home) else None


def metrics_host(environ: Mapping[str, str] = os.environ) -> str:
    """The address that the Prometheus page is served on. Raises InvalidRequest."""
    name = "OTEL_EXPORTER_PROMETHEUS_HOST"
    return addresses.parse_host(name, environ.get(name) or "127.0.0.1")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _read_toml(path: Path, fields: Sequence[Field]) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidRequest("config", str(path), f"a readable TOML file ({error})") from error
    field_by_name = {f.name: f for f in fields}
    for key, value in values.items():
        if key not in field_by_name:
            raise InvalidRequest(f"{path}: {key}", value, "one of the keys " + ", ".join(sorted(field_by_name)))
        kind: type = type(field_by_name[key].default)
        if type(value) not in ((int, float) if kind is float else (kind,)):
            raise InvalidRequest(key, value, f"a value of type {kind.__name__}")
    return values


def _convert(f: Field, value: Any, name: str = "") -> Any:
    """A setting's value from its text, or from one of its type. `name` is what the caller calls it."""
    name = name or f.name
    kind: Any = type(f.default)
    try:
        converted = kind(value)
    except ValueError as error:
        raise InvalidRequest(name, value, f"a value of type {kind.__name__}") from error
    minimum, maximum, among, check = (f.metadata[key] for key in ("minimum", "maximum", "among", "check"))
    if among and converted not in among:
        raise InvalidRequest(name, value, "one of " + ", ".join(repr(a) for a in among))
    if minimum is not None and not converted >= minimum:
        raise InvalidRequest(name, value, f"{minimum} or more")
    if maximum is not None and converted > maximum:
        raise InvalidRequest(name, value, f"{minimum} to {maximum:g}")
    if converted and check is not None:
        check(name, converted)
    return converted
