"""KEDA's ExternalScaler: decode, ask the pure core, encode."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping

from triptych.errors import InvalidRequest, Unavailable
from triptych.externalscaler import externalscaler_pb2 as pb
from triptych.externalscaler import externalscaler_pb2_grpc as pb_grpc
from triptych.roles import ROLE_NAMES, ROLES, role_name
from triptych.rpc import Context
from triptych.v1.dispatch_pb2 import Role
from triptych.v1.worker_pb2 import WORKER_STATE_QUARANTINED

from . import autoscaling, jobs
from .core import Core

TARGET_WAIT_S = 120.0
"""Where the metadata gives no wait: three times half a minute, in which a worker starts and KEDA asks, and some."""
TARGET_WAIT_S_MAX = 86_400.0
WORKERS_MAX = 1000
"""Where the metadata gives no bound. The ScaledObject has one of its own."""
LOOK_S = 0.5
"""Between two looks at whether a role is wanted, on a stream: far less than a worker's start, and next to no CPU."""
TARGET = 1
"""Of the metric for each worker: the metric is the number of workers."""
OWN_KEYS = ("role", "targetWaitSeconds", "minReplicas", "maxReplicas")
KEDA_KEYS = ("scalerAddress", "enableTLS", "unsafeSsl", "tlsCertFile", "caCert", "tlsClientCert", "tlsClientKey")
"""Keys that KEDA itself reads. It sends all of the trigger's metadata along."""


def goal_of(metadata: Mapping[str, str]) -> autoscaling.Goal:
    """What a trigger's metadata ask for. Raises InvalidRequest."""
    for key in metadata:
        if key not in OWN_KEYS + KEDA_KEYS:
            raise InvalidRequest(f"scalerMetadata.{key}", metadata[key], "one of the keys " + ", ".join(OWN_KEYS))
    name = metadata.get("role", "")
    if name not in ROLE_NAMES:
        raise InvalidRequest("scalerMetadata.role", name, ", ".join(ROLE_NAMES))
    workers_max = int(_number(metadata, "maxReplicas", WORKERS_MAX, 1, WORKERS_MAX))
    return autoscaling.Goal(
        ROLES[ROLE_NAMES.index(name)],
        _number(metadata, "targetWaitSeconds", TARGET_WAIT_S, 0, TARGET_WAIT_S_MAX),
        int(_number(metadata, "minReplicas", 0, 0, workers_max)),
        workers_max,
    )


def _number(metadata: Mapping[str, str], key: str, default: float, minimum: float, maximum: float) -> float:
    text = metadata.get(key, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not minimum <= value <= maximum:
        raise InvalidRequest(f"scalerMetadata.{key}", text, f"a number from {minimum:g} to {maximum:g}")
    return value


def _metric_of(goal: autoscaling.Goal) -> str:
    return f"triptych-{role_name(goal.role)}"


class Autoscaler:
    """What the controller knows, as the pure core wants it."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def wanted_count(self, goal: autoscaling.Goal) -> int:
        """The replicas that a role should have now.

        A fleet whose model nobody has described yet takes no jobs, so each role needs a worker that describes it.
        Raises Unavailable after a start, while workers are still expected: too few would be counted, and no stage time
        is known that says how many are needed.
        """
        if count := self.expected_count:
            raise Unavailable(
                f"{count} workers have yet to register again; until then nobody knows how many are needed"
            )
        if self._core.model.present is None:
            return max(1, goal.workers_min)
        load = {role: self._load(role) for role in ROLES}
        window_s = autoscaling.window_s(goal, load)
        busy_count = self._core.stage_times.busy_count(goal.role, asyncio.get_running_loop().time(), window_s)
        return autoscaling.wanted_count(goal, load, busy_count)

    @property
    def expected_count(self) -> int:
        """Workers that may still come back to a controller that has just started."""
        return self._core.fleet.expected_count(self._core.config.worker_timeout_s)

    def _load(self, role: Role.ValueType) -> autoscaling.RoleLoad:
        core = self._core
        states = (jobs.WAITING[role], jobs.RUNNING[role])
        members = core.fleet.alive(role)
        return autoscaling.RoleLoad(
            sum(core.ledger.model_state_counts[core.model.digest, state] for state in states),
            core.stage_times.mean_s(role) or core.ledger.longest_stage_s(role),
            sum(member.takes_work for member in members),
            sum(member.status.state == WORKER_STATE_QUARANTINED for member in members),
        )


class AutoscalingServicer(pb_grpc.ExternalScalerServicer):
    """The controller's side for KEDA."""

    def __init__(self, core: Core) -> None:
        self._autoscaler = Autoscaler(core)

    async def IsActive(self, request: pb.ScaledObjectRef, context: Context) -> pb.IsActiveResponse:
        return pb.IsActiveResponse(result=self._autoscaler.wanted_count(goal_of(request.scalerMetadata)) > 0)

    async def StreamIsActive(self, request: pb.ScaledObjectRef, context: Context) -> AsyncIterator[pb.IsActiveResponse]:
        """As long as KEDA listens, or the server runs. It says nothing while workers are still expected."""
        goal = goal_of(request.scalerMetadata)
        said: bool | None = None
        while True:
            if not self._autoscaler.expected_count:
                is_active = self._autoscaler.wanted_count(goal) > 0
                if is_active != said:
                    said = is_active
                    yield pb.IsActiveResponse(result=is_active)
            await asyncio.sleep(LOOK_S)

    async def GetMetricSpec(self, request: pb.ScaledObjectRef, context: Context) -> pb.GetMetricSpecResponse:
        name = _metric_of(goal_of(request.scalerMetadata))
        return pb.GetMetricSpecResponse(
            metricSpecs=[pb.MetricSpec(metricName=name, targetSize=TARGET, targetSizeFloat=TARGET)]
        )

    async def StreamMetricSpec(
        self, request: pb.ScaledObjectRef, context: Context
    ) -> AsyncIterator[pb.GetMetricSpecResponse]:
        """As long as KEDA listens, or the server runs: where it ended, KEDA would open it again and again."""
        yield await self.GetMetricSpec(request, context)
        await asyncio.Event().wait()

    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Context) -> pb.GetMetricsResponse:
        goal = goal_of(request.scaledObjectRef.scalerMetadata)
        name = _metric_of(goal)
        if request.metricName != name:
            raise InvalidRequest("metricName", request.metricName, name)
        count = self._autoscaler.wanted_count(goal)
        value = pb.MetricValue(metricName=name, metricValue=count, metricValueFloat=count)
        return pb.GetMetricsResponse(metricValues=[value])
