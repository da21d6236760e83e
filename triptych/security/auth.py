"""How a caller proves who it is, and whether it may call. `rules.py` has what each RPC asks for.

A caller is known by its bearer token, or, where it shows none, by its certificate (on ports with mutual TLS). Name and
rights come from the same proof. Where neither certificates nor tokens are configured, every caller may call every RPC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from triptych.errors import InvalidRequest, NotAllowed, Unauthenticated
from triptych.security.certificates import AuthContext, Certificates, role_and_name
from triptych.security.identity import (
    ANYONE,
    BY_CERTIFICATE,
    CALLER_NAME,
    NAME_ACCEPTED,
    SCOPE_ADMIN,
    SCOPE_CONTROLLER,
    SCOPE_READ,
    SCOPE_SUBMIT,
    SERVICE,
    Identity,
)
from triptych.security.live_files import LiveFiles
from triptych.security.rules import WORKERS, rules_of
from triptych.security.tokens import Tokens

Metadata = Iterable[tuple[str, str | bytes]]

TOKEN_KEY = "authorization"
"""Metadata of a call that carries a token, as `Bearer …` (RFC 6750)."""
_SCHEME = "bearer "

SCOPES_BY_ROLE: Mapping[str, tuple[str, ...]] = {
    **{role: (role,) for role in WORKERS},
    "client": (SCOPE_SUBMIT, SCOPE_READ),
    "admin": (SCOPE_ADMIN,),
    "controller": (SCOPE_CONTROLLER,),
}
"""What a certificate's role may do."""
NAMED_ROLES = ("client", "admin")
"""Roles that jobs may belong to: their certificates must say whose they are."""

REFLECTION = "/grpc.reflection."
"""Prefix of the methods that need a proof, but no scope."""
OPEN_METHODS = "/grpc.health.v1.Health/"
"""Prefix of the methods that need no proof. Load balancers and kubelets have none."""


@dataclass(frozen=True)
class Security:
    """How a process proves who it is, and what it asks of its callers. The default asks nothing and proves nothing."""

    certificates: Certificates | None = None
    tokens: Tokens | None = None
    own_token: OwnToken | None = None

    @property
    def is_open(self) -> bool:
        """Whether callers are asked for nothing."""
        return self.certificates is None and self.tokens is None

    @property
    def among_peers(self) -> Security:
        """How this process proves itself to other workers: by its certificate, and never by its token."""
        return replace(self, own_token=None)

    def authorize(self, method: str, auth_context: AuthContext, metadata: Metadata) -> Identity:
        """Who calls, if it may. Raises Unauthenticated, NotAllowed."""
        if self.is_open:
            return ANYONE
        rules = rules_of(method)
        if rules.by_capability and self.certificates is None and _token_of(metadata) is None:
            return BEARER
        identity = self._identify(auth_context, metadata)
        if not (method.startswith(REFLECTION) or identity.may(*rules.scopes)):
            wanted = " or ".join((*rules.scopes, SCOPE_ADMIN))
            raise NotAllowed(f"{identity.name!r} may not call {method}: it takes the scope {wanted}")
        return identity

    def _identify(self, auth_context: AuthContext, metadata: Metadata) -> Identity:
        token = _token_of(metadata)
        if token is not None:
            by_token = self.tokens.identify(token) if self.tokens is not None else None
            if by_token is None:
                raise Unauthenticated("the token is not one that is known here")
            return by_token
        role, name = role_and_name(auth_context)
        if role not in SCOPES_BY_ROLE:
            wanted = " or ".join(
                (["a certificate with a role"] if self.certificates is not None else [])
                + ([f"a token, in the metadata {TOKEN_KEY!r} as 'Bearer …'"] if self.tokens is not None else [])
            )
            raise Unauthenticated(f"the caller has to prove who it is, by {wanted}")
        return _by_certificate(role, name)


BEARER = Identity("", frozenset())
"""A caller that shows a capability and no token. It may do nothing else."""

OPEN = Security()
"""For a fleet on one machine, or behind a mesh that does it all: nothing is asked, nothing is proved."""


class OwnToken:
    """The token that this process shows, from a file that may be replaced, or as it is."""

    def __init__(self, token: str = "", path: Path | None = None) -> None:
        """Raises InvalidRequest for a file that can't be read or holds no token."""

        def read(_before: str | None) -> str:
            return _read_token(path) if path is not None else _checked("token", token)

        self._token = LiveFiles("own token", [path] if path is not None else [], read)

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        """What goes with every call. A file that can't be read leaves the token as it was."""
        return ((TOKEN_KEY, f"Bearer {self._token.get()}"),)


def _by_certificate(role: str, name: str) -> Identity:
    """The identity of a certificate with this role. Raises Unauthenticated where a client's has no fit name."""
    scopes = frozenset(SCOPES_BY_ROLE[role])
    if role not in NAMED_ROLES:
        return Identity(f"{SERVICE}:{role}", scopes)
    if not CALLER_NAME.fullmatch(name):
        raise Unauthenticated(
            f"the certificate of role {role!r} doesn't say whose it is: its subject needs one common name (CN), "
            f"{NAME_ACCEPTED}"
        )
    return Identity(f"{BY_CERTIFICATE}:{name}", scopes)


def open_security(tls: str, tokens: str, token_file: str = "", token: str = "") -> Security:
    """From settings, each empty where it isn't used. Raises InvalidRequest."""
    own = OwnToken(path=Path(token_file)) if token_file else OwnToken(token) if token else None
    return Security(
        certificates=Certificates(Path(tls)) if tls else None,
        tokens=Tokens(Path(tokens)) if tokens else None,
        own_token=own,
    )


def _read_token(path: Path) -> str:
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise InvalidRequest("token_file", str(path), f"a file that holds a token ({error})") from error
    return _checked(f"token_file {path}", text)


def _checked(field: str, text: str) -> str:
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise InvalidRequest(field, "something else", "a token, as `triptych tokens add` prints it")
    return token


def _token_of(metadata: Metadata) -> str | None:
    """The caller's token; None where it shows none. Raises Unauthenticated for another scheme, or two tokens."""
    values = [value for key, value in metadata if key == TOKEN_KEY]
    if not values:
        return None
    if len(values) > 1 or not isinstance(values[0], str) or not values[0].lower().startswith(_SCHEME):
        raise Unauthenticated(f"the metadata {TOKEN_KEY!r} has to be one value, 'Bearer …'")
    return values[0][len(_SCHEME) :].strip()
