"""Which model the fleet serves, and which jobs wait for another: work belongs to the model that it was accepted for.

    what comes                              while                           what happens
    worker with the present digest          -                               taken; the first's names stay
    the same digest, described otherwise    workers are registered          refused
    worker with another digest              workers are registered          refused
    worker with another digest              some may be back from a restart asked to try again
    worker with another digest              nobody is left                  its model is the fleet's
    settings that differ from its role's    such workers are registered     refused
    job of another digest, in any state     -                               waits in the journal

Jobs of another digest are unfinished jobs as all others are: they can be watched and cancelled, they expire, and they
count in the backlog and in their clients' quotas. They are never published, leased or begun.
"""

from __future__ import annotations

import asyncio
import logging
import operator

from google.protobuf.message import Message

from triptych.errors import LeaseLost, Unavailable, WrongState
from triptych.model import adapters
from triptych.model.description import named, waiting_sentence
from triptych.roles import role_name
from triptych.v1.fleet_service_pb2 import RegisterWorkerRequest, WaitingModel
from triptych.v1.job_pb2 import Job
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.model_pb2 import ModelDescription

from .fleet import Fleet
from .journal import Journal
from .ledger import Ledger

log = logging.getLogger(__name__)

MODEL_KEY = "model"
"""Where the journal keeps the description of the fleet's model."""
HARDWARE = "hardware"
"""The one setting in which workers of a role may differ: who has two kinds of cards has no way to make them equal."""
_OWN_FIELDS = ("model", "revision", "adapters")
"""Fields in which workers may differ: hosts may keep one model in different folders, and while workers are started
again one after the other, only some have a new adapter."""


async def stored_model(journal: Journal) -> ModelDescription | None:
    """The model that the journal's last controller served; None before the first worker came."""
    stored = await journal.get_meta(MODEL_KEY)
    return ModelDescription.FromString(stored) if stored else None


class ServedModel:
    """The present model and its rules."""

    def __init__(self, ledger: Ledger, fleet: Fleet, present: ModelDescription | None) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self.present = present
        """None before the first worker came."""
        self.known = asyncio.Event()
        """Set once there is a model, from when on jobs are accepted."""
        self._offered: ModelDescription | None = None
        self._offering: list[Message] = []
        """What `_offered` was made of: the present model, and the registrations."""
        if present is not None:
            self.known.set()
        self.registering = asyncio.Lock()
        """Hold it from `take` until the worker is a member: or two of different models could both find nobody there."""

    @property
    def digest(self) -> str:
        """The present model's; empty before there is one."""
        return self.present.config_digest if self.present is not None else ""

    def described(self) -> ModelDescription:
        """The present model. Raises Unavailable before there is one."""
        if self.present is None:
            raise Unavailable("no encoder has described the model yet; try again when one has started")
        return self._with_adapters(self.present)

    def _with_adapters(self, present: ModelDescription) -> ModelDescription:
        """The description with the adapters that all workers have which need them; the same object until that changes.

        Where no worker is left, or none is back from a restart yet, those that were known last count.
        """
        registrations = [member.registration for member in self._fleet.registered() if member.registration]
        made_of = [present, *registrations]
        is_same = len(made_of) == len(self._offering) and all(map(operator.is_, made_of, self._offering))
        if self._offered is None or not is_same:
            workers = [(role_name(one.info.role), one.model) for one in registrations]
            found = adapters.offered(workers) if workers else list(present.adapters)
            self._offered = present
            if found != list(present.adapters):
                self._offered = ModelDescription()
                self._offered.CopyFrom(present)
                self._offered.ClearField("adapters")
                self._offered.adapters.extend(found)
            self._offering = made_of
        return self._offered

    def is_foreign(self, job: Job) -> bool:
        """Whether a job was accepted for another model than the present one."""
        return job.model_digest != self.digest

    def check_own(self, entry: JournalEntry) -> None:
        """Raise LeaseLost for a job of another model."""
        if self.is_foreign(entry.job):
            job = entry.job
            raise LeaseLost(
                f"job {job.job_id} was accepted for the model {named(job.model, job.model_digest)} and waits for it"
            )

    def waiting(self, client: str | None = None) -> list[WaitingModel]:
        """The other models for which jobs wait; of a client, or of all."""
        return [
            WaitingModel(model=model, model_digest=digest, job_count=count)
            for (digest, model), count in sorted(self._ledger.counts_by_model(client).items())
            if digest != self.digest
        ]

    def log_waiting(self) -> None:
        """Say what waits for other models, and what to do about it."""
        for one in self.waiting():
            log.warning("%s", waiting_sentence(one.job_count, one.model, one.model_digest))

    async def take(self, worker: RegisterWorkerRequest) -> bool:
        """Have a worker's model as the fleet's, if the table allows it; whether it took the place of another.

        Then nothing in the rings or in their queues is of use. Raises WrongState, Unavailable, JournalFull.
        """
        model = worker.model
        known = self.present
        is_other = known is not None and known.config_digest != model.config_digest
        if known is not None and is_other:
            self._check_nobody_left(known, model)
        elif known is not None and self._fleet.registered():
            _check_same(known, model)
            self._check_settings(worker)
            return False
        if known == model:
            return False
        await self._ledger.journal.set_meta(MODEL_KEY, model.SerializeToString())
        self.present = model
        self.known.set()
        if is_other:
            log.warning("the fleet's model is %s now", named(model.model, model.config_digest))
            self.log_waiting()
        return is_other

    def _check_nobody_left(self, known: ModelDescription, model: ModelDescription) -> None:
        present = named(known.model, known.config_digest)
        other = named(model.model, model.config_digest)
        if self._fleet.registered():
            raise WrongState(f"this fleet serves {present}; the worker has {other}")
        if self._fleet.members:
            raise Unavailable(f"workers of {present} may yet come back after the restart; the worker has {other}")

    def _check_settings(self, worker: RegisterWorkerRequest) -> None:
        """Raise WrongState where another worker of the role would give other bits for the same job."""
        role = role_name(worker.info.role)
        for member in self._fleet.alive(worker.info.role):
            other = member.registration
            if other is None or other.instance_id == worker.instance_id:
                continue
            for name in sorted({*other.info.stage_settings, *worker.info.stage_settings}):
                theirs = other.info.stage_settings.get(name, "")
                own = worker.info.stage_settings.get(name, "")
                if theirs == own:
                    continue
                if name != HARDWARE:
                    raise WrongState(
                        f"{name} is {own!r} at this {role} and {theirs!r} at rank {member.rank}; workers of one role "
                        "must have equal settings, or one request would give two results"
                    )
                log.warning("a %s on %s joins one on %s: last bits may differ between them", role, own, theirs)


def _check_same(known: ModelDescription, model: ModelDescription) -> None:
    """Raise WrongState for one digest with two descriptions: requests are checked against one, and run with both."""
    differing = [
        field.name
        for field in ModelDescription.DESCRIPTOR.fields
        if field.name not in _OWN_FIELDS and getattr(known, field.name) != getattr(model, field.name)
    ]
    if differing:
        raise WrongState(
            f"the worker describes {named(model.model, model.config_digest)} otherwise than this fleet does, in "
            f"{', '.join(differing)}: its software is another"
        )
