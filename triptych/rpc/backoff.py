"""The pauses between the tries of a call: pure, no I/O, no clock."""

from __future__ import annotations

import random

FIRST_S = 0.1
MAX_S = 1.0
"""A controller restarts in less than a second, and has its callers back within about another."""


class Backoff:
    """Pauses that double from `first_s` to `max_s`, shorter by a random part of `spread` so that callers spread out."""

    def __init__(self, first_s: float = FIRST_S, max_s: float = MAX_S, spread: float = 0.5) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._spread = spread
        self.reset()

    def reset(self) -> None:
        """Begin again with the first pause: the other side has answered."""
        self._bound_s = self._first_s

    def next_s(self, after_s: float = 0.0) -> float:
        """The next pause, in seconds; added to `after_s`, where the other side has said when to come back."""
        pause_s = after_s + self._bound_s * random.uniform(1.0 - self._spread, 1.0)
        self._bound_s = min(2 * self._bound_s, self._max_s)
        return pause_s
