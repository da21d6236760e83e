"""The sizes and mishaps under which the model is checked. Words in capitals are explained in ring.pml.

A single search over everything has too many states, so each configuration has a few mishaps and is searched in
full. Those that take minutes are run by hand (`python -m tests.model_checker.spin NAME`).
"""

from __future__ import annotations

from typing import NamedTuple


class Configuration(NamedTuple):
    """One way to build the model."""

    name: str
    settings: str
    """Words for `spin -D`."""
    is_liveness: bool = False
    """Whether the search is for schedules that never settle, under weak fairness, instead of for bad states."""
    violation: str = ""
    """Where a mistake is planted: what the model says of it. A schedule that never settles is `NEVER_SETTLES`."""
    is_shortest: bool = False
    """Whether the counterexample is to be as short as any, to be read."""
    is_large: bool = False
    """Whether the states need to be kept tightly."""

    @property
    def defines(self) -> list[str]:
        """The settings, for spin and gcc."""
        words = [*self.settings.split(), *(["LIVENESS"] if self.is_liveness else [])]
        return [f"-D{word}" for word in words]


NEVER_SETTLES = "<<<<<START OF CYCLE>>>>>"

SAFETY = (
    Configuration("two messages each", "MESSAGES_EACH=2"),
    Configuration("two deaths", "CRASHES=2 NACKS=1 TARGETED=1"),
    Configuration("a death and a suspicion", "CRASHES=1 SUSPICIONS=1 TARGETED=1"),
    Configuration("a suspicion, a reap that stops", "SUSPICIONS=1 INTERRUPTIONS=1 NACKS=1"),
    Configuration("parked", "CRASHES=1 INTERRUPTIONS=1 NACKS=2 TARGETED=1"),
    Configuration("adopted", "ADOPT=1 CRASHES=1 TARGETED=1"),
    Configuration("adopted, a lost connection", "ADOPT=1 CUTS=1 TARGETED=1"),
    Configuration("three slots", "SLOTS=3 CRASHES=1 NACKS=1"),
    Configuration("a lost connection", "CUTS=1 NACKS=1"),
)
"""Every state is looked at, for a broken promise or a process that can't go on."""

LIVENESS = (
    Configuration("settles after a death", "CRASHES=1 TARGETED=1", is_liveness=True),
    Configuration("settles after a suspicion", "SUSPICIONS=1 TARGETED=1", is_liveness=True),
    Configuration("settles after a lost connection", "CUTS=1 TARGETED=2", is_liveness=True),
)
"""Every schedule comes to the point where all that was published is acked or removed, and every slot is free."""

MISTAKES = (
    Configuration("the order of a peer", "PEER_ORDER", violation="a message is lost", is_shortest=True),
    Configuration("a death at a peer", "PEER_ORDER CRASHES=1", violation="a message is lost", is_shortest=True),
    Configuration("reap before fence", "NO_FENCE SUSPICIONS=1", violation="published torn"),
    Configuration(
        "redelivery under the same attempt",
        "SAME_ATTEMPT CRASHES=1 TABLE_UNCHECKED",
        violation="a fencing token was given out twice",
    ),
    Configuration(
        "ack without compare-and-swap", "ACK_BLINDLY SUSPICIONS=1", violation="a stale ack or nack was taken"
    ),
    Configuration("claim looks, then stores", "CLAIM_BLINDLY", violation="delivered after its ack"),
    Configuration("claim does not look again", "NO_SECOND_LOOK SUSPICIONS=1", violation="two live leases"),
    Configuration(
        "a reap that forgets what it took out",
        "REMOVAL_FORGOTTEN ATTEMPTS_MAX=1 TARGETED=1 CRASHES=1 INTERRUPTIONS=1",
        violation="a message is lost",
    ),
    Configuration("what is known is taken back", "KEPT_TAKEN_BACK CUTS=1", violation="two live leases"),
    Configuration(
        "a connection before an adoption is known", "CONNECTS_EARLY ADOPT=1 CUTS=1", violation="two live leases"
    ),
    Configuration("half-written slots are left", "HALF_WRITTEN_LEFT CRASHES=1", True, NEVER_SETTLES),
    Configuration("a dead rank is reaped only once", "REAP_ONCE CRASHES=1 TARGETED=1", True, NEVER_SETTLES),
    Configuration("lost claims are left", "NOTHING_ABANDONED CUTS=1", True, NEVER_SETTLES),
)
"""One planted mistake each, which the search must find."""

BY_HAND = (
    Configuration("two messages each, a death", "MESSAGES_EACH=2 CRASHES=1", is_large=True),
    Configuration("two messages each, three slots", "MESSAGES_EACH=2 SLOTS=3", is_large=True),
    Configuration(
        "a death, a suspicion, a reap that stops", "CRASHES=1 SUSPICIONS=1 INTERRUPTIONS=1 NACKS=1", is_large=True
    ),
    Configuration("three attempts, two deaths", "ATTEMPTS_MAX=3 ATTEMPT_MAX=3 CRASHES=2 NACKS=1", is_large=True),
    Configuration("two suspicions", "SUSPICIONS=2 NACKS=1", is_large=True),
    Configuration("a lost connection and a death", "CUTS=1 CRASHES=1", is_large=True),
    Configuration("a lost connection and a suspicion", "CUTS=1 SUSPICIONS=1", is_large=True),
    Configuration("adopted, handed back", "ADOPT=1 NACKS=2", is_large=True),
    Configuration("adopted, a lost connection, handed back", "ADOPT=1 CUTS=1 NACKS=1 TARGETED=1", is_large=True),
    Configuration("adopted, a suspicion", "ADOPT=1 SUSPICIONS=1 NACKS=1 TARGETED=1", is_large=True),
    Configuration("settles after a death, parked", "CRASHES=1 NACKS=2", is_liveness=True, is_large=True),
    Configuration(
        "settles after reaps that stop", "SUSPICIONS=1 INTERRUPTIONS=1 NACKS=1", is_liveness=True, is_large=True
    ),
    Configuration("settles with two messages each", "MESSAGES_EACH=2", is_liveness=True, is_large=True),
)
"""Larger: a minute or several each, and up to 3 GiB."""

SIMULATED = (
    Configuration(
        "all mishaps",
        "MESSAGES_EACH=2 NACKS=1 TARGETED=1 ADOPT=1 ATTEMPT_MAX=3 CRASHES=1 SUSPICIONS=2 CUTS=1 INTERRUPTIONS=1",
    ),
    Configuration("parked and adopted", "MESSAGES_EACH=2 NACKS=2 ADOPT=1 TARGETED=1 CRASHES=1 INTERRUPTIONS=1"),
    Configuration("dead letters", "MESSAGES_EACH=2 NACKS=1 TARGETED=1 CRASHES=3 INTERRUPTIONS=1"),
    Configuration("suspicions", "MESSAGES_EACH=2 NACKS=1 ATTEMPTS_MAX=3 ATTEMPT_MAX=3 SUSPICIONS=3 INTERRUPTIONS=2"),
    Configuration("lost connections", "MESSAGES_EACH=2 NACKS=1 ATTEMPT_MAX=3 CUTS=1 SUSPICIONS=1"),
    Configuration("three slots at once", "MESSAGES_EACH=3 SLOTS=3 NACKS=1 ATTEMPTS_MAX=3 ATTEMPT_MAX=3 CRASHES=1"),
)
"""Under which random schedules are replayed by the real programs. They need no search, so more may happen."""

CHECKED = (*SAFETY, *LIVENESS, *MISTAKES)
BY_NAME = {configuration.name: configuration for configuration in (*CHECKED, *BY_HAND)}
