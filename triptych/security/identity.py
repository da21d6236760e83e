"""Who calls: the server's interceptor sets it, and servicers ask for it. `triptych.security.auth` has the proofs."""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass

SCOPE_SUBMIT = "submit"
SCOPE_READ = "read"
SCOPE_ADMIN = "admin"
"""What clients may do: create and cancel their jobs; see them and their results; everything, with everybody's jobs."""
SCOPE_ENCODER = "encoder"
SCOPE_TRANSFORMER = "transformer"
SCOPE_DECODER = "decoder"
"""What workers may do: what their role does, and nothing else."""
SCOPE_CONTROLLER = "controller"
"""What a controller may do: call workers back. It has a certificate or no proof at all, so no token has this scope."""
SCOPES = (SCOPE_SUBMIT, SCOPE_READ, SCOPE_ADMIN, SCOPE_ENCODER, SCOPE_TRANSFORMER, SCOPE_DECODER)

CALLER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
"""A name in a certificate or a token file. No two look alike, and no system takes two for one."""
NAME_ACCEPTED = "1 to 64 letters (A to Z, a to z), digits and . _ @ -, a letter or digit first"
BY_CERTIFICATE = "cert"
BY_TOKEN = "token"
SERVICE = "service"
"""Kinds of names: `cert:alice` and `token:alice` need not be one person. A service's certificate needs no name: its
role says what it may do, and no job belongs to it."""
CLIENT_NAME = re.compile(rf"(?:{BY_CERTIFICATE}|{BY_TOKEN}):{CALLER_NAME.pattern}")
"""Names that jobs belong to, where callers are asked who they are."""


@dataclass(frozen=True)
class Identity:
    """A caller: its name, under which jobs are counted, and what it may do."""

    name: str
    """Kind and name, for example `token:alice`; empty where nobody is asked."""
    scopes: frozenset[str]
    jobs_max: int = 0
    """Unfinished jobs that it may have at once; 0 for no limit."""

    def may(self, *scopes: str) -> bool:
        """Whether it has one of the scopes, or is an administrator."""
        return SCOPE_ADMIN in self.scopes or not self.scopes.isdisjoint(scopes)


ANYONE = Identity("", frozenset(SCOPES))
"""The caller where nothing is asked of callers: no certificates and no tokens are configured."""

_caller: ContextVar[Identity] = ContextVar("triptych_caller", default=ANYONE)


def caller() -> Identity:
    """Who makes the call that is being served."""
    return _caller.get()


def set_caller(identity: Identity) -> None:
    """Called by the server's interceptor, before the servicer."""
    _caller.set(identity)
