"""The invariants of every schedule, checked in a ledger that the ring doesn't know of."""

from __future__ import annotations

from triptych.rings import protocol, recovery
from triptych.rings.layout import StateWord

_ALLOWED = {(line.source, line.target, line.attempt_step) for line in protocol.TABLE.values()}


class Violation(AssertionError):
    """An invariant of the leased ring was broken."""


class Ledger:
    """Follows each message, named by its payload, from publication to its one end."""

    def __init__(self, attempts_max: int) -> None:
        self.attempts_max = attempts_max
        self.begun: set[bytes] = set()
        self.published: set[bytes] = set()
        self.acked: set[bytes] = set()
        self.removed: dict[bytes, str] = {}
        self.delivery_count: dict[bytes, int] = {}
        self.fenced: set[int] = set()
        self.stale_refusals = 0
        self._holder: dict[bytes, int] = {}
        self._tokens: set[tuple[int, int]] = set()
        self._redelivered: set[protocol.Held] = set()

    def on_change(self, before: int, after: int) -> None:
        """A state word was swapped."""
        old, new = StateWord.unpack(before), StateWord.unpack(after)
        step = new.attempt - old.attempt if new.kind else 0
        if (old.kind, new.kind, step) not in _ALLOWED:
            raise Violation(f"no line of the table leads from {old} to {new}")
        if old.kind and new.kind and new.ticket != old.ticket:
            raise Violation(f"the ticket changed from {old} to {new}")

    def on_published(self, message: bytes) -> None:
        """`publish` returned."""
        self.published.add(message)

    def on_claimed(self, claim: protocol.Claim) -> None:
        """`claim` returned a lease to a rank that isn't fenced."""
        held, message = claim
        _check(message in self.begun, f"{message!r} was never published")
        _check(message not in self.acked, f"{message!r} delivered after its ack")
        _check(message not in self.removed, f"{message!r} delivered after its removal")
        _check(message not in self._holder, f"{message!r} delivered to {held.rank} and {self._holder.get(message)}")
        token = (held.ticket, held.attempt)
        _check(token not in self._tokens, f"the fencing token {token} was given out twice")
        self._tokens.add(token)
        self._holder[message] = held.rank
        self.delivery_count[message] = self.delivery_count.get(message, 0) + 1
        _check(self.delivery_count[message] <= self.attempts_max, f"{message!r} delivered past the cap")

    def on_acked(self, held: protocol.Held, message: bytes) -> None:
        """`ack` returned."""
        _check(held not in self._redelivered, f"the ack of {held} was taken although it had been redelivered")
        _check(message not in self.acked, f"{message!r} acked twice")
        _check(message not in self.removed, f"{message!r} acked after its removal")
        self.acked.add(message)
        self._let_go(held.rank, message)

    def on_nacked(self, held: protocol.Held, message: bytes) -> None:
        """`nack` returned, in the same step as its compare-and-swap: nobody else has the message yet."""
        self._let_go(held.rank, message)

    def on_let_go(self, rank: int, message: bytes) -> None:
        """A rank has tried to end its lease and doesn't know whether it has: it doesn't work on it any more."""
        self._let_go(rank, message)

    def on_lease_lost(self, rank: int) -> None:
        """A program raised LeaseLost."""
        _check(rank in self.fenced, f"rank {rank} lost its lease although nobody took it for dead")
        self.stale_refusals += 1

    def on_fenced(self, rank: int) -> None:
        """The controller cut a rank off. From now on its leases aren't live."""
        self.fenced.add(rank)
        for message in [message for message, holder in self._holder.items() if holder == rank]:
            del self._holder[message]

    def on_reaped(self, reaped: recovery.Reaped) -> None:
        """`reap` returned."""
        self._redelivered.update(claim.held for claim in reaped.redelivered)
        for held, message, reason in reaped.removed:
            _check(message in self.begun, f"the reaper took out {message!r}, which was never published")
            _check(message not in self.acked, f"{message!r} removed after its ack")
            _check(message not in self.removed, f"{message!r} removed twice")
            if reason == recovery.PAST_CAP:
                _check(held.attempt + 1 >= self.attempts_max, f"{held} dropped before the cap")
            self.removed[message] = reason

    def on_end(self) -> None:
        """Everything has run, the ring is drained."""
        lost = self.published - self.acked - set(self.removed)
        _check(not lost, f"lost: {sorted(lost)}")

    def _let_go(self, rank: int, message: bytes) -> None:
        if self._holder.get(message) == rank:
            del self._holder[message]


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)
