"""A stand-in for KEDA and Kubernetes' HorizontalPodAutoscaler, by their formulas.

The HPA: for a metric of type AverageValue, `ceil(metric / target)`, unless the ratio to what there is lies within the
tolerance of a tenth; up by at most 100 % or four pods a step, whichever is more; down to the largest of what was
recommended in the stabilisation window (kubernetes.io, "Horizontal Pod Autoscaling", its algorithm and its defaults).
KEDA: from zero to one when active, and to zero once it wasn't for the cooldown.
"""

from __future__ import annotations

import math

TOLERANCE = 0.1
STEP_PODS = 4


class Hpa:
    """Of one role; the metric's target is 1. Times are in seconds of one clock."""

    def __init__(self, most: int, window_s: float, cooldown_s: float) -> None:
        self._most = most
        self._window_s = window_s
        self._cooldown_s = cooldown_s
        self._recommended: list[tuple[float, int]] = []
        self._active_s = -math.inf

    def wanted(self, now_s: float, count: int, metric: float, is_active: bool) -> int:
        """The replicas to have, of `count` that there are."""
        if is_active:
            self._active_s = now_s
        if count == 0:
            return 1 if is_active else 0
        if not is_active and now_s - self._active_s > self._cooldown_s:
            return 0
        within = abs(metric / count - 1) <= TOLERANCE
        raw = max(1, count if within else math.ceil(metric))
        self._recommended = [(at_s, n) for at_s, n in self._recommended if at_s > now_s - self._window_s]
        self._recommended.append((now_s, raw))
        if raw < count:
            raw = min(count, max(n for _at_s, n in self._recommended))
        return min(raw, max(2 * count, count + STEP_PODS), self._most)
