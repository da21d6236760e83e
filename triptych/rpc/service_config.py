"""gRPC's service config for clients: which calls a channel repeats by itself, and with which pauses.

Which calls those are is an option of each RPC in the protos (`idempotency_level`). `make proto` writes it to
docs/service_config.json, for clients in other languages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

from triptych.rpc.backoff import FIRST_S
from triptych.security.rules import RULES, WORKERS

ATTEMPTS_MAX = 5
"""The most that gRPC takes."""


class Pauses(NamedTuple):
    """What lies between the attempts, in seconds. gRPC varies each by a fifth."""

    first_s: float
    factor: float
    max_s: float


PATIENT = Pauses(0.25, 3, 6)
"""For clients that have nothing else: 7.4 s and more in all. A standby that waits for a lease of 5 s serves by then."""
BRISK = Pauses(FIRST_S / 4, 2, FIRST_S)
"""For a client that goes on by itself, and says better than a deadline what was wrong: a quarter of a second in all."""


def service_config(pauses: Pauses = PATIENT) -> str:
    """The service config as JSON, for the channel option `grpc.service_config`.

    Only UNAVAILABLE is met with another try: nobody hedges. What is full says so to the caller, who knows whether its
    job can wait. Calls of workers are left out, since workers repeat them under their new registration.
    """
    policy = {
        "maxAttempts": ATTEMPTS_MAX,
        "initialBackoff": f"{pauses.first_s:g}s",
        "maxBackoff": f"{pauses.max_s:g}s",
        "backoffMultiplier": pauses.factor,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    names = [dict(zip(("service", "method"), path[1:].split("/"), strict=True)) for path in _repeatable()]
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]}, indent=2)


def _repeatable() -> Iterator[str]:
    for path, rules in RULES.items():
        if rules.is_repeatable and (not rules.scopes or not set(rules.scopes) <= set(WORKERS)):
            yield path
