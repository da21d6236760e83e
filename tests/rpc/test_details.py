"""What a client in any language reads from an error: `google.rpc.Status` with ErrorInfo, BadRequest and RetryInfo."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from tests.rpc.test_rpc import CLASSES, make, raised_by
from triptych import errors, rpc
from triptych.rpc.status import CLASS_BY_REASON, SENTENCE_BYTES_MAX, ending_of, reason_of, status_of
from triptych.security import auth, tokens
from triptych.v1.worker_service_pb2 import GetWorkerRequest
from triptych.v1.worker_service_pb2_grpc import WorkerServiceStub

ERRORS_PAGE = Path(__file__).parents[2] / "docs/errors.md"
HEADERS_BYTES_MAX = 8192
"""gRPC's default."""


def unpacked(status: Status) -> dict[type[Message], Message]:
    return dict(_unpacked(status))


def _unpacked(status: Status) -> Iterator[tuple[type[Message], Message]]:
    for packed in status.details:
        for cls in (ErrorInfo, BadRequest, RetryInfo):
            detail = cls()
            if packed.Unpack(detail):
                yield cls, detail


async def details_of(error: Exception) -> dict[type[Message], Message]:
    """What gRPC's own reader of details finds in a unary call's error; a stream's must be the same."""
    unary, stream = [rpc_status.from_call(caught) for caught in await raised_by(error)]
    assert unary == stream
    return unpacked(unary)


async def test_a_refused_field_is_named() -> None:
    found = await details_of(errors.InvalidRequest("height", 7, "a multiple of 8"))
    info, refused = found[ErrorInfo], found[BadRequest]
    assert (info.reason, info.domain) == ("INVALID_REQUEST", "triptych")
    (violation,) = refused.field_violations
    assert (violation.field, violation.description) == ("height", "accepted: a multiple of 8")
    assert RetryInfo not in found


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (errors.BacklogFull("no place", 0.7), 0.7),
        (errors.QuotaFull("no place"), 2.0),
        (errors.Unavailable("it starts"), 1.0),
        (errors.JournalDamaged("it can't be read"), None),
        (errors.NotFound("no job"), None),
    ],
)
async def test_a_server_says_when_to_come_back(error: errors.TriptychError, seconds: float | None) -> None:
    found = (await details_of(error)).get(RetryInfo)
    assert (None if found is None else found.retry_delay.ToMilliseconds() / 1000) == seconds


async def test_a_bug_has_a_reason_too() -> None:
    found = await details_of(RuntimeError("the prompt was: a secret"))
    assert found[ErrorInfo].reason == "INTERNAL"
    assert len(found) == 1


async def test_callers_that_are_turned_away_are_told_why(tmp_path: Path) -> None:
    """Before any servicer: who nobody knows, and a method that is none."""
    file = tmp_path / "tokens.toml"
    tokens.add(file, "alice", ["submit"])
    server = await rpc.start_server("127.0.0.1:0", [], security=auth.open_security("", str(file)))
    try:
        async with rpc.open_channel(server.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as missing:
                await WorkerServiceStub(channel).GetWorker(GetWorkerRequest(), timeout=10)
    finally:
        await server.stop(0)
    assert missing.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert rpc.reason_from(missing.value) == "NO_SUCH_METHOD"
    assert "/triptych.v1.WorkerService/GetWorker" in (missing.value.details() or "")


NAMES = st.sampled_from(CLASSES)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=2000)


def caught(error: Exception) -> grpc.aio.AioRpcError:
    code, message, trailing = ending_of(error)
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), message)


@given(NAMES, TEXTS, st.floats(0.001, 3600))
def test_any_error_with_any_text_survives_and_fits(cls: type[errors.TriptychError], text: str, after_s: float) -> None:
    error = make(cls)
    if cls is not errors.InvalidRequest:
        error = cls.__new__(cls)
        Exception.__init__(error, text)
    if error.retry_after_s is not None:
        error.retry_after_s = after_s
    restored = rpc.error_from(caught(error))
    assert type(restored) is cls
    assert str(error).startswith(str(restored)) or not text
    assert restored.retry_after_s == pytest.approx(error.retry_after_s, abs=1e-8)


@given(TEXTS, TEXTS, TEXTS)
def test_headers_hold_the_longest_errors(field: str, value: str, accepted: str) -> None:
    _code, message, trailing = ending_of(errors.InvalidRequest(field, value, accepted))
    encoded = sum(1 if char.isascii() and char.isprintable() else 3 * len(char.encode()) for char in message)
    assert encoded <= SENTENCE_BYTES_MAX
    for key, text in trailing:
        encoded += len(key) + (len(text) * 4 // 3 + 4 if isinstance(text, bytes) else len(text))
    assert encoded < HEADERS_BYTES_MAX // 2, "half is left for what others add"
    assert isinstance(rpc.error_from(caught(errors.InvalidRequest(field, value, accepted))), errors.InvalidRequest)


@given(st.binary(max_size=200))
def test_what_nobody_can_read_is_an_error_without_a_name(data: bytes) -> None:
    """A proxy may add or change anything."""
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", data))
    error = grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), trailing, "gone")
    assert rpc.reason_from(error) == ""
    assert type(rpc.error_from(error)) is errors.NotFound


def rows() -> Iterator[str]:
    """The table of docs/errors.md."""
    for reason, cls in CLASS_BY_REASON.items():
        wait = "" if cls.retry_after_s is None else f"{cls.retry_after_s:g} s"
        meaning = (cls.__doc__ or "").partition("\n")[0]
        yield f"| `{reason}` | {status_of(make(cls)).name} | {wait} | {meaning} |"


def test_the_page_of_errors_has_every_reason() -> None:
    assert re.findall(r"^\| `.*$", ERRORS_PAGE.read_text(), re.MULTILINE) == list(rows())


def test_a_reason_is_its_class_in_capitals() -> None:
    assert reason_of(errors.RoomGone) == "ROOM_GONE"
    assert len(CLASS_BY_REASON) == len(CLASSES)
