"""All settings, and the only file that reads the environment.

A process builds one frozen dataclass in its `__main__`. Each field may come, later ones winning, from its
default, a TOML file (`--config`), the environment (`TRIPTYCH_<FIELD>`) and the command line (`--field`).
An unknown key, or a value of the wrong type or range, is an InvalidRequest that names it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from triptych import message_bounds
from triptych.errors import InvalidRequest

Config = TypeVar("Config", bound="ProcessConfig")

DTYPES = ("float32", "bfloat16", "float16")
MOVERS = ("local", "mooncake", "rpc")
RINGS = ("auto", "verbs", "rpc")
MOONCAKE = ("auto", "rdma", "tcp")


HEARTBEATS_MIN = 2
"""Reports that fit into the time after which a worker counts as dead."""
DAY_S = 86_400.0
BYTES_MAX = 2**50
"""A pebibyte: more than any disk or memory here, and whole in a float."""


def setting(
    default: Any, about: str, *, minimum: float | None = None, maximum: float | None = None, among: Sequence[str] = ()
) -> Any:
    """A field of a configuration: its default, what it is for, and what is accepted."""
    return field(default=default, metadata={"about": about, "minimum": minimum, "maximum": maximum, "among": among})


@dataclass(frozen=True)
class ProcessConfig:
    """What every process of a fleet has."""

    address: str = setting("127.0.0.1:0", "host:port to serve on; port 0 takes a free one")
    tls: str = setting("", "folder of ca.crt, tls.crt and tls.key: mutual TLS on address; default: no TLS")
    tokens: str = setting("", "file of clients' tokens; without it and without tls, anybody may call")
    client_address: str = setting("", "host:port, TLS as well, for clients that have a token and no certificate")
    trace_file: str = setting("", "append spans to this file as OTLP JSON lines")
    hold_file: str = setting("", "append what holds the event loop longer than all before to this file")
    metrics_port: int = setting(0, "serve Prometheus metrics on this port; 0 for none", minimum=0, maximum=65_535)
    drain_timeout_s: float = setting(
        600.0, "after SIGTERM, give a running job so long to finish", minimum=0, maximum=30 * DAY_S
    )
    rings: str = setting("auto", "queues over RDMA (verbs), through the controller (rpc), or what works", among=RINGS)
    rdma_device: str = setting("", "RDMA device as DEVICE[:PORT[:GID_INDEX]]; default: the first that works")

    def check(self) -> None:
        """Hold the settings against each other. Raises InvalidRequest."""


@dataclass(frozen=True)
class ControllerConfig(ProcessConfig):
    """Settings of the controller."""

    address: str = setting("127.0.0.1:7070", "host:port to serve on; port 0 takes a free one")
    state: str = setting(".triptych", "folder of the job journal")
    result_url: str = setting("", "fsspec URL where decoders store results; default: results/ in the state folder")
    heartbeat_interval_s: float = setting(1.0, "how often workers report", minimum=0.05, maximum=600)
    worker_timeout_s: float = setting(10.0, "silence after which a worker counts as dead", minimum=0.2, maximum=DAY_S)
    stall_timeout_s: float = setting(
        900.0, "a job without progress for so long counts its worker dead", minimum=1, maximum=30 * DAY_S
    )
    attempts_max: int = setting(4, "attempts after which a job fails", minimum=1, maximum=1000)
    backlog_jobs_max: int = setting(
        10_000, "unfinished jobs after which CreateJob is refused", minimum=1, maximum=1_000_000
    )
    watches_max: int = setting(
        10_000, "open WatchJob streams: what clients that never leave can take", minimum=1, maximum=1_000_000
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
        """Hold the settings against each other. Raises InvalidRequest.

        A worker must be able to miss a report, or one that lives is taken for dead; one that is silent must be found
        before one that only stands still; a client must be able to send the largest request.
        """
        least_s = HEARTBEATS_MIN * self.heartbeat_interval_s
        if self.worker_timeout_s < least_s:
            accepted = f"{least_s:g} or more: {HEARTBEATS_MIN} times heartbeat_interval_s"
            raise InvalidRequest("worker_timeout_s", self.worker_timeout_s, accepted)
        if self.stall_timeout_s < self.worker_timeout_s:
            accepted = f"{self.worker_timeout_s:g} or more: worker_timeout_s"
            raise InvalidRequest("stall_timeout_s", self.stall_timeout_s, accepted)
        if 0 < self.client_bytes_max < message_bounds.REQUEST_BYTES_MAX:
            accepted = f"0, or {message_bounds.REQUEST_BYTES_MAX} or more: the largest request"
            raise InvalidRequest("client_bytes_max", self.client_bytes_max, accepted)
        if self.client_address and self.client_address == self.address and not self.address.endswith(":0"):
            raise InvalidRequest("client_address", self.client_address, "another port than that of address")


@dataclass(frozen=True)
class WorkerConfig(ProcessConfig):
    """Settings of an encoder, transformer or decoder."""

    model: str = setting("", "folder or hub id of a diffusers pipeline")
    revision: str = setting("", "revision of the hub's repository")
    controller: str = setting("127.0.0.1:7070", "host:port of the controller")
    token_file: str = setting("", "file of this worker's own token, where it has no certificate")
    device: str = setting("cpu", "torch device of this role, for example cuda:0")
    dtype: str = setting("float32", "element type of the weights", among=DTYPES)
    fake_stage_seconds: float = setting(
        0.0,
        "load tests: no model, but a stand-in whose transformer takes so long; 0 for the model",
        minimum=0,
        maximum=DAY_S,
    )
    fake_model: str = setting("fake", "load tests: that stand-in's name; another name is another model, of other bits")
    release_timeout_s: float = setting(
        30.0, "when leaving, wait so long for others to read its rooms", minimum=0, maximum=DAY_S
    )
    threads: int = setting(0, "torch threads; 0 leaves torch's default", minimum=0, maximum=1024)
    arena_bytes: int = setting(
        2**30, "size of the arena in /dev/shm (taken page by page, when used)", minimum=2**16, maximum=BYTES_MAX
    )
    advertise_host: str = setting("", "host name under which others reach this worker; default: that of address")
    mover: str = setting("", "force one mover instead of choosing per room", among=("", *MOVERS))
    mooncake: str = setting("auto", "Mooncake's protocol; auto takes rdma where there is a device", among=MOONCAKE)


def load(cls: type[Config], argv: Sequence[str] | None, environ: Mapping[str, str] = os.environ) -> Config:
    """Build a configuration from its sources.

    Raises InvalidRequest for an unknown key or a bad value; `--help` and bad flags exit as argparse does (0, 2).
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", metavar="FILE", default=None, help="TOML file of settings")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name, f in fields.items():
        parser.add_argument(_flag(name), metavar=name.upper(), help=f"{f.metadata['about']} (default: {f.default!r})")
    parser.set_defaults(**dict.fromkeys(fields))
    flags = vars(parser.parse_args(argv))
    values: dict[str, Any] = {}
    if flags["config"]:
        values.update(_read_toml(Path(flags["config"]), fields))
    for name in fields:
        variable = "TRIPTYCH_" + name.upper()
        if variable in environ:
            values[name] = environ[variable]
        if flags[name] is not None:
            values[name] = flags[name]
    config = cls(**{name: _convert(fields[name], value) for name, value in values.items()})
    config.check()
    return config


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
    """PYTHONPATH for a process of ours, where it is set: without its empty entries, which mean the current folder."""
    if "PYTHONPATH" not in environ:
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, environ["PYTHONPATH"].split(os.pathsep)))}


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where what can be made anew is kept, by the XDG convention; None for a user without a home."""
    named = environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):
        return Path(named) / "triptych"
    home = environ.get("HOME", "")
    return Path(home) / ".cache" / "triptych" if os.path.isabs(home) else None


def metrics_host(environ: Mapping[str, str] = os.environ) -> str:
    """The address that the Prometheus page is served on."""
    return environ.get("OTEL_EXPORTER_PROMETHEUS_HOST") or "127.0.0.1"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _read_toml(path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidRequest("config", str(path), f"a readable TOML file ({error})") from error
    for key in values:
        if key not in fields:
            raise InvalidRequest(f"{path}: {key}", values[key], "one of the keys " + ", ".join(sorted(fields)))
    return values


def _convert(f: dataclasses.Field[Any], value: Any) -> Any:
    kind: Any = type(f.default)
    try:
        converted = kind(value)
    except (TypeError, ValueError, OverflowError) as error:  # int(inf), from a TOML file
        raise InvalidRequest(f.name, value, f"a value of type {kind.__name__}") from error
    minimum, maximum, among = (f.metadata[name] for name in ("minimum", "maximum", "among"))
    if among and converted not in among:
        raise InvalidRequest(f.name, value, "one of " + ", ".join(repr(a) for a in among))
    if minimum is not None and not converted >= minimum:
        raise InvalidRequest(f.name, value, f"{minimum} or more")
    if maximum is not None and converted > maximum:
        raise InvalidRequest(f.name, value, f"{minimum} to {maximum:g}")
    return converted
