"""How roles and cards go together: what fits, how many of a role keep pace, and a fleet for given cards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from triptych.errors import InvalidRequest
from triptych.limits import DURATION_S_MAX
from triptych.planning.cards import GB, Card
from triptych.roles import ROLE_NAMES

RESERVE_BYTES = 1 * GB
"""Memory of a process on a card beside its tensors: the driver's context, kernels, and workspaces of their libraries.
An assumption: a CUDA context alone takes some hundred megabytes, by card and driver."""
_ENCODER, _TRANSFORMER, _DECODER = ROLE_NAMES


class ComponentSize(NamedTuple):
    """One component of a role."""

    name: str
    class_name: str
    parameter_count: int
    weight_bytes: int
    """Bytes of parameters and of saved buffers, at the dtype and quantization that they are loaded with."""


class RoleSize(NamedTuple):
    """What one worker of a role holds."""

    role: str
    components: Sequence[ComponentSize]
    activation_bytes: int | None
    """Peak of tensors beside the weights while one job runs; None where it isn't known."""
    room_bytes: int | None
    """Bytes of what the role hands on; None where it isn't known, 0 for the decoder."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all its components' weights."""
        return sum(component.weight_bytes for component in self.components)

    @property
    def needed_bytes(self) -> int:
        """Memory of a card that a worker of this role needs; without activations where they aren't known."""
        return self.weight_bytes + (self.activation_bytes or 0) + RESERVE_BYTES

    def fits(self, card: Card) -> bool:
        """Whether one worker of this role has room on the card, alone."""
        return self.needed_bytes <= card.memory_bytes


class StageSeconds(NamedTuple):
    """How long one job takes in each role, on its own card."""

    encoder: float
    transformer: float
    decoder: float

    @classmethod
    def parse(cls, text: str) -> StageSeconds:
        """`0.26,25,0.31`, in the order of the roles. Raises InvalidRequest for anything else."""
        accepted = f"three numbers of seconds, for {', '.join(ROLE_NAMES)}, each above 0 and at most {DURATION_S_MAX:g}"
        try:
            values = [float(part) for part in text.split(",")]
        except ValueError as error:
            raise InvalidRequest("stage_seconds", text, accepted) from error
        if len(values) != len(ROLE_NAMES) or not all(0 < value <= DURATION_S_MAX for value in values):
            raise InvalidRequest("stage_seconds", text, accepted)
        return cls(*values)

    @property
    def per_transformer(self) -> tuple[float, float]:
        """Encoders and decoders that keep pace with one transformer.

        A transformer ends a job each `transformer` seconds; an encoder begins one each `encoder` seconds. So it takes
        `encoder / transformer` encoders, and as many decoders by their time.
        """
        return self.encoder / self.transformer, self.decoder / self.transformer

    def counts(self, transformer_count: int) -> dict[str, int]:
        """Whole workers of each role for so many transformers."""
        encoders, decoders = self.per_transformer
        return {
            _ENCODER: _at_least(encoders * transformer_count),
            _TRANSFORMER: transformer_count,
            _DECODER: _at_least(decoders * transformer_count),
        }


class Placement(NamedTuple):
    """A card and the roles of the workers on it."""

    card: Card
    roles: Sequence[str]


class Fleet(NamedTuple):
    """Workers on cards, and the jobs that they end in a second."""

    placements: Sequence[Placement]
    jobs_per_s: float

    def counts(self) -> dict[str, int]:
        """Workers of each role."""
        return {role: sum(list(place.roles).count(role) for place in self.placements) for role in ROLE_NAMES}


def plan(cards: Sequence[Card], sizes: Mapping[str, RoleSize], seconds: StageSeconds) -> Fleet | None:
    """The fleet with the most transformers that the cards hold, and the encoders and decoders that keep pace.

    A transformer has its card to itself as long as others have room; encoders and decoders share cards where their
    memory fits, and a card's workers are never busier than the card. None where not even one transformer with one
    encoder and one decoder has room.
    """
    for transformer_count in range(len(cards), 0, -1):
        if (placements := _place(cards, sizes, seconds, transformer_count)) is not None:
            return Fleet(placements, transformer_count / seconds.transformer)
    return _share_all(cards, sizes, seconds)


class _Slot:
    """A card that is being filled."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.roles: list[str] = []
        self.free_bytes = card.memory_bytes
        self.load = 0.0
        """Share of the time that its workers are busy."""

    def add(self, role: RoleSize, load: float) -> None:
        self.roles.append(role.role)
        self.free_bytes -= role.needed_bytes
        self.load += load

    def takes(self, role: RoleSize, load: float) -> bool:
        return role.needed_bytes <= self.free_bytes and self.load + load <= 1.0 + 1e-9


def _place(
    cards: Sequence[Card], sizes: Mapping[str, RoleSize], seconds: StageSeconds, transformer_count: int
) -> list[Placement] | None:
    """First fit: transformers on the smallest cards that hold them, then the others, the larger first."""
    slots = [_Slot(card) for card in cards]
    able = sorted((slot for slot in slots if sizes[_TRANSFORMER].fits(slot.card)), key=lambda s: s.card.memory_bytes)
    if len(able) < transformer_count:
        return None
    for slot in able[:transformer_count]:
        slot.add(sizes[_TRANSFORMER], 1.0)
    counts = seconds.counts(transformer_count)
    paces = dict(zip((_ENCODER, _DECODER), seconds.per_transformer, strict=True))
    for role in sorted(paces, key=lambda name: -sizes[name].needed_bytes):
        load = paces[role] * transformer_count / counts[role]
        for _ in range(counts[role]):
            chosen = min(
                (slot for slot in slots if slot.takes(sizes[role], load)), key=lambda s: s.free_bytes, default=None
            )
            if chosen is None:
                return None
            chosen.add(sizes[role], load)
    return [Placement(slot.card, tuple(slot.roles)) for slot in slots]


def _share_all(cards: Sequence[Card], sizes: Mapping[str, RoleSize], seconds: StageSeconds) -> Fleet | None:
    """One worker of each role where no card is free for the others: they take turns, so a job takes all its seconds."""
    slots = [_Slot(card) for card in cards]
    for role in sorted(sizes.values(), key=lambda size: -size.needed_bytes):
        chosen = min(
            (slot for slot in slots if role.needed_bytes <= slot.free_bytes), key=lambda s: s.free_bytes, default=None
        )
        if chosen is None:
            return None
        chosen.add(role, getattr(seconds, role.role))
    return Fleet([Placement(slot.card, tuple(slot.roles)) for slot in slots], 1 / max(slot.load for slot in slots))


def _at_least(value: float) -> int:
    """Rounded up, but never none. What floats add to a whole number doesn't count."""
    return max(1, math.ceil(value - 1e-9))
