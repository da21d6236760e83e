"""Every RPC's comment lists its codes, and the codes with which a server turns a caller away are among them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from tests.filled import filled
from tests.rpc.test_required_fields import METHODS, PASSED, services
from triptych import rpc
from triptych.rpc.requests import required_fields
from triptych.security import auth, tokens
from triptych.security.rules import RULES

PROTOS = Path(__file__).parents[2] / "protos/triptych"
CODES = {code.name for code in grpc.StatusCode}
COMMENT = r"((?:^ *//[^\n]*\n)+)"
AS_CREATE_JOB = {"Generate", "StartDirectJob", "RetryJob"}
"""Their comments say that their codes are also those of CreateJob."""


def comments() -> dict[str, tuple[str, str]]:
    """Of each RPC, by its path: its service's comment and its own."""
    found = {}
    for path in (*PROTOS.glob("v1/*_service.proto"), *PROTOS.glob("externalscaler/*.proto")):
        text = path.read_text()
        (package,) = re.findall(r"^package ([\w.]+);", text, re.MULTILINE)
        (about, service), *_ = re.findall(rf"{COMMENT}service (\w+)", text, re.MULTILINE)
        for own, name in re.findall(rf"{COMMENT} *rpc (\w+)", text, re.MULTILINE):
            found[f"/{package}.{service}/{name}"] = (about, own)
    return found


COMMENTS = comments()


def listed(path: str) -> set[str]:
    return CODES.intersection(re.findall(r"[A-Z_]+", "".join(COMMENTS[path])))


def test_every_rpc_lists_its_codes_and_says_whether_it_may_be_repeated() -> None:
    assert set(COMMENTS) == set(RULES)
    for path, (_about, own) in COMMENTS.items():
        assert "Codes:" in own, path
        assert "Retry:" in own, path
        if path.rpartition("/")[2] in AS_CREATE_JOB:
            assert "CreateJob" in own, path


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[tuple[str, dict[str, str]]]:
    """A server that can do nothing and knows its callers, and a token for each scope."""
    file = tmp_path / "tokens.toml"
    known = {scope: tokens.add(file, scope, [scope]) for scope in ("submit", "read", "encoder", "admin")}
    server = await rpc.start_server("127.0.0.1:0", services(), security=auth.open_security("", str(file)))
    yield server.address, known
    await server.stop(0)


async def ending(address: str, path: str, data: bytes, token: str) -> grpc.StatusCode:
    """How a call ends for a caller with a token, or with none."""
    security = auth.open_security("", "", token=token) if token else auth.OPEN
    async with rpc.open_channel(address, security) as channel:
        is_stream = METHODS[path].client_streaming
        kind = channel.stream_stream if is_stream else channel.unary_stream
        try:
            async for _ in kind(path)(iter([data]) if is_stream else data, timeout=10):
                pass
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("path", METHODS)
async def test_what_turns_a_caller_away_is_listed(guarded: tuple[str, dict[str, str]], path: str) -> None:
    address, known = guarded
    method, rules = METHODS[path], RULES[path]
    whole = filled(GetMessageClass(method.input_type)).SerializeToString()
    seen = set()
    if not rules.by_capability:
        seen.add(await ending(address, path, whole, ""))
        assert seen == {grpc.StatusCode.UNAUTHENTICATED}
    for scope in known.keys() - {*rules.scopes, "admin"}:
        code = await ending(address, path, whole, known[scope])
        assert code is grpc.StatusCode.PERMISSION_DENIED, scope
        seen.add(code)
    if required_fields(method.input_type) and not method.client_streaming:
        code = await ending(address, path, b"", known["admin"])
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        seen.add(code)
    if not method.client_streaming:
        assert await ending(address, path, whole, known["admin"]) is PASSED
    assert {code.name for code in seen} <= listed(path)
    assert "UNAVAILABLE" in listed(path)
