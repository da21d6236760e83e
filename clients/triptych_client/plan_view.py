"""A plan as tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from triptych.planning.cards import GB, Card
from triptych.planning.fleet import Fleet, RoleSize, StageSeconds
from triptych.roles import ROLE_NAMES
from triptych_client.tables import Block, Cell, Headline, Table

TRANSFORMERS_SHOWN = (1, 2, 4, 8, 16)


class Plan(NamedTuple):
    """What `triptych plan` found."""

    sizes: Mapping[str, RoleSize]
    note: str
    """Why there are no activations and rooms; empty where there are."""
    cards: Sequence[Card]
    seconds: StageSeconds | None
    fleet: Fleet | None
    """None without cards or seconds, and where the cards don't hold one worker of each role."""


def view(plan: Plan) -> list[Block]:
    """The plan for people."""
    columns = ("role", "component", "parameters, 10^9", "weights", "activations", "card", "room")
    blocks: list[Block] = [Table("sizes", columns, list(_rows(plan)), "what each role needs, in GB (10^9 bytes)")]
    if plan.note:
        blocks.append(Headline("note", (plan.note,), style=""))
    if plan.cards:
        blocks.append(_fits(plan))
    if plan.seconds:
        blocks.append(_pace(plan.seconds))
    if plan.seconds and plan.cards:
        blocks.append(_fleet(plan.fleet))
    return blocks


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan for scripts; sizes in bytes."""
    seconds = plan.seconds
    return {
        "roles": [
            {
                "role": size.role,
                "components": [component._asdict() for component in size.components],
                "weight_bytes": size.weight_bytes,
                "activation_bytes": size.activation_bytes,
                "needed_bytes": size.needed_bytes,
                "room_bytes": size.room_bytes,
            }
            for size in plan.sizes.values()
        ],
        "note": plan.note,
        "cards": [
            {**card._asdict(), "fits": [role for role in ROLE_NAMES if plan.sizes[role].fits(card)]}
            for card in plan.cards
        ],
        "stage_seconds": seconds._asdict() if seconds else None,
        "per_transformer": dict(zip(("encoder", "decoder"), seconds.per_transformer, strict=True)) if seconds else None,
        "fleet": _fleet_json(plan.fleet) if plan.fleet else None,
    }


def _rows(plan: Plan) -> Iterator[Sequence[Cell]]:
    for size in plan.sizes.values():
        for part in size.components:
            yield (size.role, part.name, f"{part.parameter_count / 1e9:.3g}", _gb(part.weight_bytes), "", "", "")
        known = (size.weight_bytes, size.activation_bytes, size.needed_bytes, size.room_bytes)
        yield (size.role, "all", "", *map(_gb, known))


def _fits(plan: Plan) -> Block:
    rows = [
        (
            card.name,
            str(list(plan.cards).count(card)),
            *("yes" if plan.sizes[role].fits(card) else "no" for role in ROLE_NAMES),
        )
        for card in dict.fromkeys(plan.cards)
    ]
    return Table("cards", ("card", "count", *ROLE_NAMES), rows, "which cards hold which role, one worker alone")


def _pace(seconds: StageSeconds) -> Block:
    encoders, decoders = seconds.per_transformer
    counts = [seconds.counts(count) for count in TRANSFORMERS_SHOWN]
    rows = [tuple(str(each[role]) for role in ROLE_NAMES) for each in counts]
    title = f"workers that keep pace: {encoders:.3g} encoders and {decoders:.3g} decoders to a transformer"
    return Table("pace", ROLE_NAMES, rows, title)


def _fleet(fleet: Fleet | None) -> Block:
    if fleet is None:
        return Headline("fleet", ("these cards don't hold one worker of each role",))
    rows = [(place.card.name, ", ".join(place.roles) or "free") for place in fleet.placements]
    counts = ", ".join(f"{count} {role}" for role, count in fleet.counts().items())
    return Table("fleet", ("card", "workers"), rows, f"a fleet: {counts}; {fleet.jobs_per_s * 3600:.4g} jobs an hour")


def _fleet_json(fleet: Fleet) -> dict[str, Any]:
    return {
        "placements": [{"card": place.card.name, "roles": list(place.roles)} for place in fleet.placements],
        "counts": fleet.counts(),
        "jobs_per_s": fleet.jobs_per_s,
    }


def _gb(size_bytes: int | None) -> str:
    return "" if size_bytes is None else f"{size_bytes / GB:.3g}"
