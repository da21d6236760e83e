"""What a run will do, drawn from its seed before anything starts: which jobs, which faults, when, on whom.

Pure: the same seed and shape give the same plan on any machine. What a machine then can't do (network namespaces, small
disks) is left out when its time comes, not here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from tests.fleet.processes import CONTROLLER, worker_names

ALL_WORKERS = "all workers"
DISKS = ("results", "state")
WORKER_TIMEOUT_S = 2.0
"""Short: much is to happen in a run, and it asks only that every job ends well."""


LEASE_S = 2.0
"""Of two controllers."""


class Kind(StrEnum):
    """Kinds of faults."""

    KILL = "kill"
    """kill -9 of a worker; it is started again at once."""
    PAUSE_SHORT = "pause-short"
    """SIGSTOP for less than the worker timeout."""
    PAUSE_LONG = "pause-long"
    """SIGSTOP for longer: the worker is declared dead, and wakes up."""
    KILL_CONTROLLER = "kill-controller"
    """kill -9, and a start on the same port and state."""
    PAUSE_CONTROLLER = "pause-controller"
    PARTITION_SHORT = "partition-short"
    """A worker's packets go nowhere, for less than the worker timeout."""
    PARTITION_LONG = "partition-long"
    DELAY = "delay"
    LOSS = "loss"
    CORRUPT = "corrupt"
    """Bytes all over a live arena are flipped, again and again for a while, since rooms live for a moment."""
    FILL_RESULTS = "fill-results"
    FILL_STATE = "fill-state"
    LEAVE = "leave"
    """SIGTERM: a worker drains and ends, with rooms that others still need; it is started again."""
    SICK = "sick"
    """A worker can write, or open, no file any more (a resource limit of 0), so it fails everything."""
    LATE_DECODER = "late-decoder"
    """SIGSTOP of a decoder that has a job, until well after another has done it; then it wakes and goes on."""
    MODEL_SWAP = "model-swap"
    """All workers are killed, and workers of another model come, while jobs wait; then those of the first come back."""
    TAKEOVER = "takeover"
    """SIGSTOP of the active one of two controllers for longer than its lease: the other takes over; then the first goes
    on, must find out, and ends. It is started again, to stand by."""


WEIGHTS: Mapping[Kind, int] = {
    Kind.KILL: 10,
    Kind.PAUSE_SHORT: 5,
    Kind.PAUSE_LONG: 4,
    Kind.KILL_CONTROLLER: 4,
    Kind.PAUSE_CONTROLLER: 2,
    Kind.PARTITION_SHORT: 3,
    Kind.PARTITION_LONG: 3,
    Kind.DELAY: 3,
    Kind.LOSS: 2,
    Kind.CORRUPT: 5,
    Kind.FILL_RESULTS: 2,
    Kind.FILL_STATE: 2,
    Kind.LEAVE: 4,
    Kind.SICK: 3,
    Kind.LATE_DECODER: 3,
    Kind.MODEL_SWAP: 1,
}
"""How many of each in a full plan; a shorter one keeps the shares, as far as whole numbers allow."""
PAIR_WEIGHTS: Mapping[Kind, int] = {**WEIGHTS, Kind.TAKEOVER: 4}
"""With two controllers. `KILL_CONTROLLER` and `PAUSE_CONTROLLER` are of the active one then."""
_DURATIONS_S: Mapping[Kind, tuple[float, float]] = {
    Kind.KILL: (0.0, 0.0),
    Kind.PAUSE_SHORT: (0.3, 0.6 * WORKER_TIMEOUT_S),
    Kind.PAUSE_LONG: (1.5 * WORKER_TIMEOUT_S, 2.5 * WORKER_TIMEOUT_S),
    Kind.KILL_CONTROLLER: (0.0, 0.0),
    Kind.PAUSE_CONTROLLER: (0.3, 1.5 * WORKER_TIMEOUT_S),
    Kind.PARTITION_SHORT: (0.3, 0.6 * WORKER_TIMEOUT_S),
    Kind.PARTITION_LONG: (1.5 * WORKER_TIMEOUT_S, 3.0 * WORKER_TIMEOUT_S),
    Kind.DELAY: (2.0, 5.0),
    Kind.LOSS: (2.0, 5.0),
    Kind.CORRUPT: (0.5, 1.5),
    Kind.FILL_RESULTS: (1.0, 3.0),
    Kind.FILL_STATE: (1.0, 3.0),
    Kind.LEAVE: (0.0, 0.0),
    Kind.SICK: (3.0, 8.0),
    Kind.LATE_DECODER: (1.5 * WORKER_TIMEOUT_S, 2.5 * WORKER_TIMEOUT_S),
    Kind.MODEL_SWAP: (1.0, 2.0),
    Kind.TAKEOVER: (1.5 * LEASE_S, 2.5 * LEASE_S),
}
SWAP_S = 12.0
"""What a swap takes beside its duration: the dead are noticed, two fleets start."""
RECOVERY_S = 3.0
"""Nothing else is done to a target for so long after a fault: faults that overlap are on different targets."""
FIRST_FAULT_S = 2.0
SIZES = ((32, 32), (64, 64), (64, 96))
PROMPTS = ("a big red circle", "a small green square", "a yellow triangle that moves", "two blue lines")


@dataclass(frozen=True)
class Shape:
    """How large a run is."""

    encoders: int = 2
    transformers: int = 3
    decoders: int = 2
    jobs: int = 540
    faults: int = 56
    seconds: float = 120.0
    """Over which jobs and faults are spread."""
    clients: int = 4
    controllers: int = 1
    """Two: one is active, the other stands by."""

    @property
    def counts(self) -> dict[str, int]:
        """Workers by role."""
        return {"encoder": self.encoders, "transformer": self.transformers, "decoder": self.decoders}

    @property
    def workers(self) -> list[str]:
        """Names of all workers, for example `encoder-0`."""
        return worker_names(self.counts)


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong."""

    at_s: float
    kind: Kind
    target: str
    duration_s: float = 0.0

    def __str__(self) -> str:
        lasting = f" for {self.duration_s:.1f} s" if self.duration_s else ""
        return f"{self.at_s:7.2f} s  {self.kind} of {self.target}{lasting}"


@dataclass(frozen=True)
class Submission:
    """One job of one client."""

    number: int
    at_s: float
    client: int
    prompt: str
    seed: int
    height: int
    width: int
    steps: int
    encoder: str = ""
    """Sent to this encoder's EncoderService; empty: to the controller."""
    is_repeated: bool = False
    """Sent twice at once under one request id, the second time by another client."""
    is_watched: bool = False
    is_refused: bool = False
    """Asks for a value that the encoder refuses."""
    cancel_after_s: float | None = None
    deadline_s: float | None = None

    @property
    def request_id(self) -> str:
        """Unique within a run; each run has a journal of its own."""
        return f"chaos-{self.number}"

    def __str__(self) -> str:
        parts = [f"to {self.encoder}" if self.encoder else "", "twice" if self.is_repeated else ""]
        parts += ["watched" if self.is_watched else "", "refused" if self.is_refused else ""]
        parts += [f"cancelled after {self.cancel_after_s:.2f} s" if self.cancel_after_s is not None else ""]
        parts += [f"deadline {self.deadline_s:.2f} s" if self.deadline_s is not None else ""]
        shown = ", ".join(part for part in parts if part)
        return f"{self.at_s:7.2f} s  {self.request_id} by client {self.client} {shown}".rstrip()


@dataclass(frozen=True)
class Plan:
    """All of it, in order of time."""

    seed: int
    shape: Shape
    faults: tuple[Fault, ...] = field(default=())
    submissions: tuple[Submission, ...] = field(default=())

    def __str__(self) -> str:
        rows = sorted([*self.faults, *self.submissions], key=lambda row: row.at_s)
        return "\n".join([f"seed {self.seed}: {self.shape}", *(str(row) for row in rows)])


def make_plan(seed: int, shape: Shape) -> Plan:
    """The plan of a seed. Faults and jobs are drawn apart, so that more of one leaves the other as it is."""
    faults = _faults(random.Random(f"faults {seed}"), shape)
    submissions = _submissions(random.Random(f"jobs {seed}"), shape)
    return Plan(seed, shape, tuple(faults), tuple(submissions))


def kinds(count: int, weights: Mapping[Kind, int] = WEIGHTS) -> list[Kind]:
    """So many kinds, in the shares of `weights`: each once before any is left out, where there is room for all."""
    total = sum(weights.values())
    turns = [((n + 0.5) / weight if weight else 0.0, kind) for kind, weight in weights.items() for n in range(weight)]
    order = [kind for _turn, kind in sorted(turns)]
    firsts = list(dict.fromkeys(order))
    rest = list(order)
    for kind in firsts:
        rest.remove(kind)
    return [(firsts + rest)[n % total] for n in range(count)]


def _faults(rng: random.Random, shape: Shape) -> list[Fault]:
    order = kinds(shape.faults, PAIR_WEIGHTS if shape.controllers > 1 else WEIGHTS)
    rng.shuffle(order)
    swaps_s = order.count(Kind.MODEL_SWAP) * (SWAP_S + RECOVERY_S)
    pause_s = max(0.0, shape.seconds - FIRST_FAULT_S - swaps_s) / max(1, shape.faults)
    free_at_s: dict[str, float] = {}
    shift_s = FIRST_FAULT_S
    found = []
    for number, kind in enumerate(order):
        at_s = shift_s + (number + rng.random()) * pause_s
        duration_s = rng.uniform(*_DURATIONS_S[kind])
        candidates = _targets(kind, shape)
        free = [name for name in candidates if _free_at_s(free_at_s, kind, name, shape) <= at_s]
        target = rng.choice(free) if free else min(candidates, key=lambda n: _free_at_s(free_at_s, kind, n, shape))
        at_s = max(at_s, _free_at_s(free_at_s, kind, target, shape))
        lasts_s = duration_s + (SWAP_S if kind is Kind.MODEL_SWAP else 0.0) + RECOVERY_S
        if kind is Kind.MODEL_SWAP:
            shift_s += lasts_s  # nothing else can happen meanwhile, and not everything should happen right after it
        free_at_s.update(dict.fromkeys(_busy(kind, target, shape), at_s + lasts_s))
        found.append(Fault(round(at_s, 3), kind, target, round(duration_s, 3)))
    return sorted(found, key=lambda fault: fault.at_s)


def _targets(kind: Kind, shape: Shape) -> list[str]:
    if kind in (Kind.KILL_CONTROLLER, Kind.PAUSE_CONTROLLER, Kind.TAKEOVER):
        return [CONTROLLER]
    if kind in (Kind.FILL_RESULTS, Kind.FILL_STATE):
        return [kind.removeprefix("fill-")]
    if kind is Kind.MODEL_SWAP:
        return [ALL_WORKERS]
    if kind is Kind.LATE_DECODER:
        return [name for name in shape.workers if name.startswith("decoder")]
    if kind is Kind.CORRUPT:
        return [name for name in shape.workers if not name.startswith("decoder")]  # decoders make no rooms
    return shape.workers


def _free_at_s(free_at_s: Mapping[str, float], kind: Kind, target: str, shape: Shape) -> float:
    """When all that a fault keeps busy is free."""
    return max(free_at_s.get(name, 0.0) for name in _busy(kind, target, shape))


def _busy(kind: Kind, target: str, shape: Shape) -> list[str]:
    """What a fault keeps busy.

    A controller doesn't start on a full disk, so that is the controller's fault, too. A swap needs everybody. Workers
    are sick one at a time: an error that two workers meet is the job's.
    """
    if kind is Kind.MODEL_SWAP:
        return [*shape.workers, CONTROLLER, *DISKS]
    if kind is Kind.SICK:
        return [target, "sickness"]
    return [CONTROLLER, target] if target == "state" else [target]


def _submissions(rng: random.Random, shape: Shape) -> list[Submission]:
    pause_s = shape.seconds / max(1, shape.jobs)
    found = []
    for number in range(shape.jobs):
        height, width = rng.choice(SIZES)
        fate = rng.random()
        found.append(
            Submission(
                number=number,
                at_s=round((number + rng.random()) * pause_s, 3),
                client=rng.randrange(shape.clients),
                prompt=rng.choice(PROMPTS),
                seed=rng.randrange(2**31),
                height=height,
                width=width,
                steps=rng.randint(2, 8),
                encoder=f"encoder-{rng.randrange(shape.encoders)}" if rng.random() < 0.15 else "",
                is_repeated=rng.random() < 0.1,
                is_watched=rng.random() < 0.3,
                is_refused=fate < 0.02,
                cancel_after_s=round(rng.uniform(0.0, 2.0), 3) if 0.02 <= fate < 0.1 else None,
                deadline_s=round(rng.uniform(0.2, 3.0), 3) if 0.1 <= fate < 0.16 else None,
            )
        )
    return sorted(found, key=lambda submission: submission.at_s)
