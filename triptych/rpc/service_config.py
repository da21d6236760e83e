"""gRPC's service config for clients: which calls a channel repeats by itself, and with which pauses.

Our own client doesn't use it. It repeats by itself (`triptych_client/retry.py`), for longer, heeds servers that are
full, and says why nobody answered: an attempt that gRPC repeats inside of its deadline no longer knows.

Which calls those are is an option of each RPC in the protos (`idempotency_level`). `make proto` writes it to
docs/service_config.json, for clients in other languages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from triptych.security.rules import RULES, WORKERS

ATTEMPTS_MAX = 5
"""The most that gRPC takes."""
FIRST_PAUSE_S, PAUSE_FACTOR, LAST_PAUSE_S = 0.25, 3, 6
"""The pauses, 7.4 s and more in all: a standby that waits for a lease of 5 s serves by then."""


def service_config() -> str:
    """The service config as JSON, for the channel option `grpc.service_config`.

    Only UNAVAILABLE is met with another try: nobody hedges. What is full says so to the caller, who knows whether its
    job can wait. Calls of workers are left out, since workers repeat them under their new registration.
    """
    policy = {
        "maxAttempts": ATTEMPTS_MAX,
        "initialBackoff": f"{FIRST_PAUSE_S:g}s",
        "maxBackoff": f"{LAST_PAUSE_S:g}s",
        "backoffMultiplier": PAUSE_FACTOR,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    names = [dict(zip(("service", "method"), path[1:].split("/"), strict=True)) for path in _repeatable()]
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]}, indent=2)


def _repeatable() -> Iterator[str]:
    for path, rules in RULES.items():
        if rules.is_repeatable and (not rules.scopes or not set(rules.scopes) <= set(WORKERS)):
            yield path
