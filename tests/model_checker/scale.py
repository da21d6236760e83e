"""The real ring's numbers for those of the model. The shifts are those of docs/model/ring.pml."""

from __future__ import annotations

from dataclasses import dataclass

from tests.model_checker.configurations import Configuration
from triptych.rings import layout
from triptych.rings.layout import SLOT_HEADER_BYTES, Geometry, Kind, Slot, StateWord

PAYLOAD_BYTES = 8
"""Of every message, so that a slot's halves have one size."""
TICKET_START = layout.TICKET_COUNT - 4
"""Real ticket of the model's ticket 0: the fourth draw wraps."""


@dataclass(frozen=True)
class Scale:
    """Translates words, headers and messages of one configuration."""

    slot_count: int
    attempts_max: int
    attempt_max: int
    """The model's largest attempt; it stands for the real one."""

    @classmethod
    def of(cls, configuration: Configuration) -> Scale:
        """The scale of a configuration that sets these sizes, or leaves them at 2 as ring.pml has them."""
        settings = dict(word.split("=") for word in configuration.settings.split())
        return cls(*(int(settings.get(name, 2)) for name in ("SLOTS", "ATTEMPTS_MAX", "ATTEMPT_MAX")))

    @property
    def geometry(self) -> Geometry:
        """The real ring's."""
        return Geometry(self.slot_count, PAYLOAD_BYTES)

    def ticket(self, ticket: int) -> int:
        """The real ticket."""
        return (TICKET_START + ticket) % layout.TICKET_COUNT

    def word(self, word: int) -> StateWord:
        """The real state word."""
        kind, rank, attempt, ticket = Kind(word & 3), word >> 2 & 7, word >> 5 & 3, word >> 7
        if kind is Kind.FREE:
            assert word == 0
            return StateWord(0, 0, 0, kind)
        real_attempt = layout.ATTEMPT_MAX if attempt == self.attempt_max else attempt
        return StateWord(self.ticket(ticket), real_attempt, rank, kind)

    def header(self, header: int) -> bytes:
        """The first bytes of a real slot; zeros where nothing was written yet."""
        if header == 0:
            return bytes(SLOT_HEADER_BYTES)
        return Slot(self.ticket(header >> 3), header & 7, bytes(PAYLOAD_BYTES)).pack()[:SLOT_HEADER_BYTES]

    def payload(self, message: int) -> bytes:
        """The real message; zeros where nothing was written yet."""
        return b"message%d" % message if message else bytes(PAYLOAD_BYTES)
