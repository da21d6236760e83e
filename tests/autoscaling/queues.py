"""Three roles and their queues by a clock of their own, scaled by the controller's core and the HPA's formula."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import pairwise

from services.controller.autoscaling import Goal, RoleLoad, StageTimes, wanted_count, window_s
from tests.autoscaling.hpa import Hpa
from triptych.roles import NEXT, ROLES
from triptych.v1.dispatch_pb2 import Role

TICK_S = 0.25
SYNC_S = 15.0
WORKERS_MAX = 50


class Queues:
    """A fleet without processes. Jobs come evenly, with some jitter by the seed; workers take `start_s` to start, and
    finish what they have before they leave."""

    def __init__(self, seed: int, stage_s: Mapping[Role.ValueType, float], start_s: float, wait_s: float) -> None:
        self._random = random.Random(seed)
        self._stage_s = stage_s
        self._start_s = start_s
        self._goals = {role: Goal(role, wait_s, 0, WORKERS_MAX) for role in ROLES}
        self._hpas = {role: Hpa(WORKERS_MAX, 300.0, 300.0) for role in ROLES}
        self._times = StageTimes()
        self._now_s = 0.0
        self._due_s = 0.0
        self._synced_s = 0.0
        self._starts: dict[Role.ValueType, list[float]] = {role: [] for role in ROLES}
        """When each of the present workers is ready."""
        self._waiting: dict[Role.ValueType, list[float]] = {role: [] for role in ROLES}
        """When each job was accepted."""
        self._running: dict[Role.ValueType, list[tuple[float, float, float]]] = {role: [] for role in ROLES}
        """End, length, and when the job was accepted."""
        self._latencies: list[tuple[float, float]] = []
        self._history: dict[Role.ValueType, list[tuple[float, int]]] = {role: [] for role in ROLES}

    @property
    def counts(self) -> dict[Role.ValueType, int]:
        """The present replicas."""
        return {role: len(starts) for role, starts in self._starts.items()}

    @property
    def seen(self) -> dict[Role.ValueType, list[int]]:
        """All that there ever were."""
        return {role: [count for _at_s, count in history] for role, history in self._history.items()}

    @property
    def is_empty(self) -> bool:
        return not any(self._waiting[role] or self._running[role] for role in ROLES)

    def changes(self, role: Role.ValueType, since_s: float) -> int:
        """How often the replicas changed since then."""
        counts = [count for at_s, count in self._history[role] if at_s >= since_s]
        return sum(before != after for before, after in pairwise(counts))

    def wait_s(self, since_s: float) -> float:
        """The longest that a job took that ended since then."""
        return max((taken_s for at_s, taken_s in self._latencies if at_s >= since_s), default=0.0)

    def run(self, seconds: float, jobs_per_s: float) -> None:
        """Let so much time pass with so many jobs."""
        end_s = self._now_s + seconds
        self._due_s = self._now_s
        while self._now_s < end_s:
            self._now_s += TICK_S
            while jobs_per_s and self._due_s <= self._now_s:
                self._waiting[ROLES[0]].append(self._due_s)
                self._due_s += self._random.uniform(0.5, 1.5) / jobs_per_s
            self._work()
            if self._now_s - self._synced_s >= SYNC_S:
                self._synced_s = self._now_s
                self._scale()

    def _work(self) -> None:
        for role in reversed(ROLES):
            for done in [one for one in self._running[role] if one[0] <= self._now_s]:
                self._running[role].remove(done)
                self._times.completed(role, self._now_s, done[1])
                if role in NEXT:
                    self._waiting[NEXT[role]].append(done[2])
                else:
                    self._latencies.append((self._now_s, self._now_s - done[2]))
            free = sum(ready_s <= self._now_s for ready_s in self._starts[role]) - len(self._running[role])
            for _ in range(min(free, len(self._waiting[role]))):
                stage_s = self._stage_s[role] * self._random.uniform(0.9, 1.1)
                self._running[role].append((self._now_s + stage_s, stage_s, self._waiting[role].pop(0)))

    def _scale(self) -> None:
        load = {}
        for role in ROLES:
            ready = sum(ready_s <= self._now_s for ready_s in self._starts[role])
            job_count = len(self._waiting[role]) + len(self._running[role])
            load[role] = RoleLoad(job_count, self._times.mean_s(role), ready, 0)
        for role in ROLES:
            starts = self._starts[role]
            busy_count = self._times.busy_count(role, self._now_s, window_s(self._goals[role], load))
            metric = wanted_count(self._goals[role], load, busy_count)
            count = self._hpas[role].wanted(self._now_s, len(starts), metric, metric > 0)
            starts += [self._now_s + self._start_s] * (count - len(starts))
            starts.sort()
            del starts[count:]
            self._history[role].append((self._now_s, count))
