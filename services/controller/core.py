"""The jobs, workers, rings and model that the subjects of the controller share."""

from __future__ import annotations

from triptych import telemetry
from triptych.config import ControllerConfig
from triptych.v1.model_pb2 import ModelDescription

from .autoscaling import StageTimes
from .dispatcher import Dispatcher
from .fleet import Fleet
from .journal import Journal
from .ledger import Ledger
from .quarantine import Quarantine
from .rings import Rings
from .served_model import ServedModel
from .uploads import Uploads
from .url_media import UrlMedia


class Core:
    """Built before any subject, and the same from then on.

    All of it belongs to one event loop. A condition that must hold across an `await` is checked in `Ledger.apply`.
    """

    def __init__(
        self,
        config: ControllerConfig,
        journal: Journal,
        fleet: Fleet,
        rings: Rings,
        model: ModelDescription | None,
        *,
        epoch: int,
        result_url: str,
        metrics: telemetry.ControllerMetrics,
    ) -> None:
        """`model` is the one last served, if there was one."""
        self.config = config
        self.epoch = epoch
        self.result_url = result_url
        self.metrics = metrics
        self.fleet = fleet
        self.rings = rings.by_role
        self.removed = rings.removed
        self.ledger = Ledger(journal)
        self.model = ServedModel(self.ledger, fleet, model)
        self.uploads = Uploads(result_url)
        self.url_media = UrlMedia(config)
        self.dispatcher = Dispatcher(rings.by_role, self.ledger, fleet, self.model)
        self.quarantine = Quarantine(self.ledger)
        self.stage_times = StageTimes()
