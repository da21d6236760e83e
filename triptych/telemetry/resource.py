"""What a process says of itself with everything that it sends: its service's name, version, namespace and instance.

An instance is a rank in an epoch, `rank-epoch`, which a worker learns when it registers and which changes when it
registers again. The SDK's resources never change; so this one looks the instance up whenever something is sent, and
traces and metrics always agree.
"""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource

SCOPE = "triptych"
"""The instrumentation scope of all spans and metrics; its version is ours."""
_NAMESPACE = "triptych"

_instance_id = ""


@functools.cache
def own_version() -> str:
    """The version of this package."""
    try:
        return version("triptych")
    except PackageNotFoundError:  # run from a source tree that isn't installed
        return "unknown"


def identify(rank: int, epoch: int) -> None:
    """Say which rank of which epoch this process is from now on; rank 0 is the controller."""
    global _instance_id
    _instance_id = f"{rank}-{epoch}"


def forget() -> None:
    """This process is nobody in particular again. For `setup`."""
    global _instance_id
    _instance_id = ""


def of_process(service_name: str) -> Resource:
    """The resource of this process. OTEL_RESOURCE_ATTRIBUTES adds to it, and may name another namespace.

    Until `identify` is called the instance is a random id, the SDK's.
    """
    from opentelemetry.sdk.resources import Resource

    class OfProcess(Resource):
        @property
        def attributes(self) -> dict[str, object]:  # type: ignore[override]  # a mapping that is read only
            own = {"service.instance.id": _instance_id} if _instance_id else {}
            return {**self._attributes, **own}

        __eq__ = object.__eq__
        __hash__ = object.__hash__

    ours = Resource.create({"service.name": service_name, "service.version": own_version()})
    whole = Resource({"service.namespace": _NAMESPACE}).merge(ours)
    return OfProcess(whole.attributes, whole.schema_url)
