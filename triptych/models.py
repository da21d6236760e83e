"""How models are called in sentences: by name and by the beginning of their digest, as the command takes it."""

from __future__ import annotations

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
