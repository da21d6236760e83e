"""A fleet of fake stages behind certificates and tokens."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.conftest import model_folder  # noqa: F401 — a fixture
from tests.fleet.processes import ROLES, TEXT_ENCODER, Fleet
from triptych.environment import ClientAccess
from triptych.security import tokens
from triptych_client import authority

SCOPES = {"alice": ["submit", "read"], "bob": ["submit", "read"], "reader": ["read"], "root": ["admin"]}


@dataclass(frozen=True)
class Guarded:
    """A fleet, and what opens it."""

    fleet: Fleet
    certs: Path
    token_file: Path
    tokens: dict[str, str]
    """By the client's name."""
    anybody: Path
    """A folder with the authority's certificate alone, which is no secret."""

    def access(self, name: str) -> ClientAccess:
        """A client's token."""
        return ClientAccess(tls=str(self.anybody), token=self.tokens[name])


def make_guarded(folder: Path, *, text_model: str = "", **settings: object) -> Guarded:
    """Certificates, tokens and a fleet of fake stages that isn't started yet.

    A `text_model` is a real one, for a text encoder, which has the encoders' certificate.
    """
    certs, token_file, anybody = folder / "certs", folder / "tokens.toml", folder / "anybody"
    authority.init(certs, ["127.0.0.1"])
    made = {name: tokens.add(token_file, name, scopes) for name, scopes in SCOPES.items()}
    anybody.mkdir()
    shutil.copy(certs / "client" / "ca.crt", anybody)

    def flags(role: str) -> tuple[str, ...]:
        own = ("--fake-stage-seconds", "0.5", "--mover", "rpc") if role in ROLES else ()
        own = ("--model", text_model) if role == TEXT_ENCODER else own
        folder_name = "encoder" if role == TEXT_ENCODER else role
        tls = ("--tls", str(certs / folder_name), "--tokens", str(token_file), "--client-address", "127.0.0.1:0")
        return (*tls, *own, "--trace-file", str(folder / "trace.jsonl"))

    names = ("controller", *(f"{role}-0" for role in (*ROLES, TEXT_ENCODER)))
    fleet = Fleet(
        folder / "fleet",
        "fake",
        flags_by_name={name: flags(name.partition("-")[0]) for name in names},
        counts={TEXT_ENCODER: 1} if text_model else {},
        access=ClientAccess(tls=str(certs / "client")),
        **settings,  # type: ignore[arg-type]
    )
    return Guarded(fleet, certs, token_file, made, anybody)


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], str]) -> Iterator[Guarded]:  # noqa: F811
    """One of each role and a text encoder, rooms by `rpc`, everything behind certificates and tokens; for tests that
    don't hurt it."""
    made = make_guarded(tmp_path_factory.mktemp("guarded"), text_model=model_folder("wan_t2v"))
    with made.fleet:
        yield made
