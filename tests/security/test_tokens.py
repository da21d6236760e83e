"""Tokens: what a file says, what it refuses, and that a change of it counts at once."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from triptych.errors import InvalidRequest
from triptych.security import tokens
from triptych.security.auth import OwnToken
from triptych.security.identity import Identity


def test_only_the_digest_is_at_rest(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    token = tokens.add(path, "alice", ["submit", "read"], jobs_max=3)
    assert token.startswith("triptych_")
    assert len(token) > 40
    assert token not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert tokens.Tokens(path).identify(token) == Identity("token:alice", frozenset({"submit", "read"}), 3)


@pytest.mark.parametrize("wrong", ["", "x", "triptych_", " ", "\0", "ü", "x" * 10_000])
def test_what_is_nobodys(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "tokens.toml"
    token = tokens.add(path, "alice", ["read"])
    found = tokens.Tokens(path)
    for near in (wrong, token[:-1], token + "x", token.swapcase(), token + wrong if wrong else "x"):
        assert found.identify(near) is None


def test_a_change_counts_with_the_next_call(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    alice = tokens.add(path, "alice", ["read"])
    found = tokens.Tokens(path)
    bob = tokens.add(path, "bob", ["admin"])
    assert found.identify(bob) == Identity("token:bob", frozenset({"admin"}))
    tokens.remove(path, "alice")
    assert found.identify(alice) is None
    assert found.identify(bob) is not None


def test_a_broken_file_leaves_the_tokens_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    alice = tokens.add(path, "alice", ["read"])
    found = tokens.Tokens(path)
    path.write_text("[alice")
    os.utime(path, ns=(1, 1))
    assert found.identify(alice) is not None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[alice", "tokens"),
        ("alice = 3", "alice"),
        ('[alice]\nsha256 = "00"\nscopes = ["read"]', "sha256"),
        (f'[alice]\nsha256 = "{"0" * 64}"\nscopes = []', "scopes"),
        (f'[alice]\nsha256 = "{"0" * 64}"\nscopes = ["root"]', "scopes"),
        (f'[alice]\nsha256 = "{"0" * 64}"\nscopes = ["read"]\njobs_max = -1', "jobs_max"),
        (f'[alice]\nsha256 = "{"0" * 64}"\nscopes = ["read"]\nscope = 1', "alice"),
        (f'[a]\nsha256 = "{"0" * 64}"\nscopes = ["read"]\n[b]\nsha256 = "{"0" * 64}"\nscopes = ["read"]', "b.*not a's"),
        (f'["../x"]\nsha256 = "{"0" * 64}"\nscopes = ["read"]', "name"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=named):
        tokens.Tokens(path)


def test_names_are_unique_and_known(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    tokens.add(path, "alice", ["read"])
    with pytest.raises(InvalidRequest, match="alice"):
        tokens.add(path, "alice", ["read"])
    with pytest.raises(InvalidRequest, match="one of alice"):
        tokens.remove(path, "bob")


def test_a_workers_own_token_outlives_its_file(tmp_path: Path) -> None:
    """A file that is away, empty or unreadable for a moment is no fault of the job in hand."""
    path = tmp_path / "token"
    path.write_text("triptych_first\n")
    own = OwnToken(path=path)
    path.unlink()
    assert own.metadata == (("authorization", "Bearer triptych_first"),)
    for text in ("", "two\nlines", "ü"):
        path.write_text(text)
        assert own.metadata == (("authorization", "Bearer triptych_first"),)
    path.write_text("triptych_second")
    assert own.metadata == (("authorization", "Bearer triptych_second"),)
    for bad in ("", "ü", "a\nb"):
        with pytest.raises(InvalidRequest, match="token"):
            OwnToken(bad)


def test_changes_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: tokens.add(path, f"client-{n}", ["read"]), range(24)))
    assert {identity.name for identity in tokens.read(path)} == {f"token:client-{n}" for n in range(24)}
