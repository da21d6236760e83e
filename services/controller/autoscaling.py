"""How many workers a role needs: pure. `docs/autoscaling.md` derives the formula and says how to choose the wait.

Every job that hasn't yet passed a role is work for it, also while it is still in an earlier phase. So a queue of
encodes asks for transformers and decoders at once, in the ratio of their stage times. With n such jobs, a stage that
takes s seconds, a path to its end of p seconds and a wait of w seconds beside it,

    workers = n * (s / (w + p))

By Little's law n settles where jobs wait for w seconds, and the workers at what the arriving work needs. Fewer than the
present ones are wanted only when those that were busy lately fit into them, with some slack.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from triptych.roles import ROLES
from triptych.v1.dispatch_pb2 import Role

SLACK = 0.25
"""Of a worker: how far the load must be below one worker less before that one goes. Without it a load of just two
workers would swing between two and three."""
MEASURES_KEPT = 1024
"""Completed phases of a role that are remembered: at ten a second, of the last minutes."""
MEASURES_AVERAGED = 32
"""The last ones, whose mean is the role's stage time: enough to even requests out, few enough to follow a change."""


class Measure(NamedTuple):
    """A completed phase."""

    end_s: float
    stage_s: float


class StageTimes:
    """What the phases of each role took lately, from StartPhase to CompletePhase. All times are of one clock."""

    def __init__(self) -> None:
        self._measures: Mapping[Role.ValueType, deque[Measure]] = {role: deque(maxlen=MEASURES_KEPT) for role in ROLES}

    def completed(self, role: Role.ValueType, now_s: float, stage_s: float) -> None:
        """Take up a phase that ends now."""
        self._measures[role].append(Measure(now_s, stage_s))

    def mean_s(self, role: Role.ValueType) -> float:
        """The role's stage time; 0 before its first completion."""
        last = list(self._measures[role])[-MEASURES_AVERAGED:]
        return sum(measure.stage_s for measure in last) / len(last) if last else 0.0

    def busy_count(self, role: Role.ValueType, now_s: float, window_s: float) -> float:
        """How many workers the phases kept busy, on average, that ended in the last `window_s` seconds."""
        measures = self._measures[role]
        if len(measures) == MEASURES_KEPT:
            window_s = min(window_s, now_s - measures[0].end_s)
        recent_s = sum(measure.stage_s for measure in measures if measure.end_s > now_s - window_s)
        return recent_s / window_s if window_s > 0 else 0.0


@dataclass(frozen=True)
class Goal:
    """What an autoscaler wants for one role."""

    role: Role.ValueType
    wait_s: float
    """How long a job may wait in all, from its acceptance to the end of this role's phase, beside the stages' times."""
    workers_min: int
    workers_max: int


class RoleLoad(NamedTuple):
    """What the controller sees of a role."""

    job_count: int
    """Jobs of the fleet's model that wait for the role or are run by it."""
    stage_s: float
    """0 where it isn't known."""
    worker_count: int
    """Workers that take work."""
    quarantined_count: int
    """Workers that take none and still count as replicas."""


Load = Mapping[Role.ValueType, RoleLoad]


def path_of(load: Load, role: Role.ValueType) -> list[RoleLoad]:
    """The roles that a job passes up to this one's end."""
    return [load[one] for one in ROLES[: ROLES.index(role) + 1]]


def window_s(goal: Goal, load: Load) -> float:
    """How long a job may take from its acceptance to the end of the role's phase; also what "lately" means."""
    return goal.wait_s + sum(one.stage_s for one in path_of(load, goal.role))


def wanted_count(goal: Goal, load: Load, busy_count: float) -> int:
    """The replicas that the role should have. `busy_count` is the measured one of the goal's window."""
    own = load[goal.role]
    count = _needed(sum(one.job_count for one in path_of(load, goal.role)), own, window_s(goal, load), busy_count)
    return min(max(count + own.quarantined_count, goal.workers_min), goal.workers_max)


def _needed(job_count: int, own: RoleLoad, window_s: float, busy_count: float) -> int:
    now = own.worker_count
    if job_count and not own.stage_s:
        return max(1, now)  # nobody knows yet: one shows it
    exact = job_count * (own.stage_s / window_s) if window_s > 0 else 0.0
    if exact > now:
        return math.ceil(exact)
    needed = max(exact, busy_count)
    if not needed:
        return 0
    if needed > now - 1 - SLACK:
        return now
    return math.ceil(needed + SLACK)
