"""What is too large is refused before it costs anything: messages, pictures that unpack to gigabytes."""

from __future__ import annotations

import resource
import struct
import zlib

import grpc
import pytest

from tests.security.conftest import Guarded
from tests.security.test_roles import client_of
from tests.security.test_strangers import channel_to
from triptych.errors import InvalidRequest
from triptych.media.decoding import decode
from triptych.media.decoding.headers import IMAGE, File
from triptych.rpc.options import MESSAGE_BYTES_MAX


def png(width: int, height: int) -> bytes:
    """A picture of a few hundred bytes that says it is as large as this, and holds rows of nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(2**16))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (2**31 - 1, 1), (8193, 8192)])
def test_a_picture_that_unpacks_to_gigabytes_is_refused_by_its_header(width: int, height: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidRequest, match=r"media\.image is"):
        decode.decode_all([File("image", IMAGE, png(width, height))])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024, "KiB"


def test_a_message_that_is_too_large_is_refused_and_the_server_goes_on(guarded: Guarded) -> None:
    metadata = (("authorization", f"Bearer {guarded.tokens['alice']}"),)
    with channel_to(guarded, "controller") as channel:
        call = channel.unary_unary("/triptych.v1.GenerationService/CreateJob")
        with pytest.raises(grpc.RpcError) as caught:
            call(bytes(MESSAGE_BYTES_MAX + 1), timeout=60, metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    with client_of(guarded, "alice") as alice:
        assert alice.describe_model().model == "fake"
