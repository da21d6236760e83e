"""How models are called in sentences: by name and by the beginning of their digest, as the command takes it."""

from __future__ import annotations

import re

DIGEST_CHARS = 12
"""Digits of a digest that are shown, and the fewest by which a model can be named: 48 bits, so no two models meet."""


def named(model: str, digest: str) -> str:
    """A model for people."""
    return f"{model!r} (digest {digest[:DIGEST_CHARS]})"


def waiting_sentence(job_count: int, model: str, digest: str) -> str:
    """What to do about jobs that wait for a model that the fleet doesn't serve."""
    jobs = "1 job waits" if job_count == 1 else f"{job_count} jobs wait"
    return (
        f"{jobs} for the model {named(model, digest)}, which this fleet doesn't serve: start a fleet with "
        f"`--model {model}`, use another state folder, or end them with "
        f"`triptych jobs --discard-model {digest[:DIGEST_CHARS]}`"
    )


_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


def is_hub_id(model: str) -> bool:
    """Whether a model that isn't a folder may be one on the hub: `owner/name`, and nothing that looks like a path."""
    return _HUB_ID.fullmatch(model) is not None
