"""The tie between a worker and its controller, seen from the worker: pure, no I/O, no clock.

    event                         in state             what follows
    ask                           untied               number + 1; the request carries it
    answered, of number n         untied, number n     tied; no orders are applied yet
    broken or fenced, of n        tied, number n       untied: ask again
    orders m, on a stream of n    tied, number n       apply; m is acknowledged with the next report
    anything of an older number   any                  nothing: it belongs to the past

Rules for editors: each call to the controller remembers the number that it was sent under, and comes back with it.
So a late answer can't end a tie that was made since. A number is used once: the controller takes each registration
of a worker in the order of its numbers, and refuses one that comes after a newer. A registration whose answer was
lost is asked for again, and must then have the same effect at the controller. The controller's side is
`services/controller/orders.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Tie:
    """A worker's registrations, counted."""

    number: int = 0
    """Number of the newest registration; 0 before the first."""
    is_tied: bool = False
    """Whether the newest was answered, and nothing has ended it since."""
    applied: int = 0
    """The newest orders that were applied, in the controller's count for this registration."""

    def ask(self) -> int:
        """A registration is about to be sent; its number."""
        self.number += 1
        self.is_tied = False
        return self.number

    def answered(self, number: int) -> None:
        """A registration was accepted. An older one than the newest changes nothing."""
        if number == self.number and not self.is_tied:
            self.is_tied = True
            self.applied = 0

    def ended(self, number: int) -> bool:
        """The stream broke, or a call was refused, under this registration; whether the tie ends by it."""
        if number != self.number or not self.is_tied:
            return False
        self.is_tied = False
        return True

    def ordered(self, number: int, orders: int) -> bool:
        """Orders came on a stream of this registration; whether to apply them."""
        if number != self.number or not self.is_tied:
            return False
        self.applied = max(self.applied, orders)
        return True
