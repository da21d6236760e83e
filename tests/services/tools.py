"""A whole controller over a journal, without its servers."""

from __future__ import annotations

from services.controller.controller import Controller
from services.controller.journal import Journal
from services.controller.ledger import Ledger
from triptych import telemetry
from triptych.config import ControllerConfig
from triptych.identity import SCOPE_ADMIN, Identity
from triptych.rings.memory import MemoryRing
from triptych.roles import RING_OF
from triptych.stages.fake import FAKE_MODEL

CLIENT = Identity("somebody", frozenset((SCOPE_ADMIN,)))


def make_controller(journal: Journal) -> Controller:
    """Of the model of fake stages."""
    rings = {name: MemoryRing(name, 1, attempts_max=3) for name in RING_OF.values()}
    with telemetry.setup("test", trace_file="", metrics_port=0) as seen:
        return Controller(ControllerConfig(), Ledger(journal), rings, FAKE_MODEL, seen.metrics)
