"""A controller: its subjects, built one upon the other. It never touches a tensor."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from triptych.v1.fleet_service_pb2 import RegisterWorkerRequest
from triptych.v1.journal_pb2 import JournalEntry

from .core import Core
from .evictions import Evictions
from .holdings import Holdings
from .lifecycle import Lifecycle
from .media_checks import MediaChecks
from .membership import Membership
from .phases import PhaseReports
from .upkeep import Upkeep


async def nobody_is_called(_request: RegisterWorkerRequest) -> None:
    """Takes the place of `CallBack` where workers have no servers."""


class Controller:
    """Every subject, for servers and tests."""

    def __init__(
        self,
        core: Core,
        media: MediaChecks,
        on_over: Callable[[JournalEntry], None] = lambda _entry: None,
        holdings_type: type[Holdings] = Holdings,
        call_back: Callable[[RegisterWorkerRequest], Awaitable[None]] = nobody_is_called,
    ) -> None:
        """`on_over` is told of each job that ends; `call_back` refuses workers that can't be reached."""
        self.core = core
        self.lifecycle = Lifecycle(core, media, on_over)
        self.phases = PhaseReports(core, self.lifecycle)
        self.evictions = Evictions(core, self.lifecycle)
        self.holdings = holdings_type(core, self.lifecycle)
        self.membership = Membership(core, self.evictions, self.holdings, call_back)
        self.upkeep = Upkeep(core, self.lifecycle, self.evictions)
