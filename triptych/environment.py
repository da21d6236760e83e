"""Environment variables that are no settings: clients' proofs, and OpenTelemetry, proxies, Python and desktops."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych import addresses
from triptych.errors import InvalidRequest


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


def module_path(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """PYTHONPATH for a service, where it is set: without its empty entries, which mean the current folder."""
    if "PYTHONPATH" not in environ:
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, environ["PYTHONPATH"].split(os.pathsep)))}


def set_allocator(settings: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Have torch's allocator of device memory take these settings. Torch reads them when it is imported."""
    environ["PYTORCH_ALLOC_CONF"] = settings
    environ["PYTORCH_CUDA_ALLOC_CONF"] = settings  # the name before torch 2.9


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


@dataclass(frozen=True)
class ClientAccess:
    """How a client proves who it is; each empty where it doesn't."""

    tls: str = ""
    token_file: str = ""
    token: str = ""


def client_access(environ: Mapping[str, str] = os.environ) -> ClientAccess:
    """From `TRIPTYCH_TLS`, `TRIPTYCH_TOKEN_FILE` and `TRIPTYCH_TOKEN`."""
    return ClientAccess(*(environ.get(f"TRIPTYCH_{name}", "") for name in ("TLS", "TOKEN_FILE", "TOKEN")))
