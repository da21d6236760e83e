"""Uploads by HTTP: in one go and in parts, and jobs that use them."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import socket
import uuid

import numpy as np
import PIL.Image

from tests.fleet.processes import wait_until
from tests.mesh.proxy import Proxy
from tests.mesh.rest import Answer, ask
from tests.mesh.test_rest import REQUEST, watched

MIB = 2**20
WAIT_S = 60.0


def picture(side: int = 1300) -> bytes:
    """A PNG of about 3 bytes a pixel."""
    noise = np.random.default_rng(3).integers(0, 256, (side, side, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def create(proxy: Proxy, media: dict[str, str]) -> Answer:
    return ask(proxy.address, "POST", "/v1/jobs", {"request": {**REQUEST, "media": [{"name": "image", **media}]}})


def sha256(upload: dict[str, str]) -> bytes:
    return base64.b64decode(upload["sha256"])


def test_a_large_picture_by_upload_gives_the_result_of_one_in_the_request(proxy: Proxy) -> None:
    data = picture()
    assert len(data) > 4 * MIB
    answer = ask(proxy.address, "POST", "/v1/uploads", data, {"content-type": "image/png"})
    assert answer.status == 200, answer.body
    upload = answer.json["upload"]
    assert (int(upload["size_bytes"]), upload["complete"], sha256(upload)) == (
        len(data),
        True,
        hashlib.sha256(data).digest(),
    )
    files = []
    for media in ({"upload_id": upload["upload_id"]}, {"data": base64.b64encode(data).decode()}):
        made = create(proxy, media)
        assert made.status == 200, made.body
        job_id = made.json["job"]["job_id"]
        assert watched(proxy, job_id, "*/*")[1][-1]["job"]["state"] == "JOB_STATE_SUCCEEDED"
        files.append(ask(proxy.address, "GET", f"/v1/jobs/{job_id}/artifacts/0").body)
    assert files[0] == files[1]
    without = ask(proxy.address, "POST", "/v1/jobs", {"request": REQUEST}).json["job"]["job_id"]
    watched(proxy, without, "*/*")
    assert ask(proxy.address, "GET", f"/v1/jobs/{without}/artifacts/0").body != files[0], "the picture counts"


def test_one_that_broke_goes_on_where_it_was(proxy: Proxy) -> None:
    data = picture()
    path = f"/v1/uploads/{uuid.uuid4().hex}"
    cut = 3 * MIB
    host, port = proxy.address.split(":")
    with socket.create_connection((host, int(port)), timeout=WAIT_S) as line:
        line.sendall(f"PUT {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data[:cut])

        def there() -> int:
            answer = ask(proxy.address, "GET", path)
            return int(answer.json["upload"]["size_bytes"]) if answer.status == 200 else 0

        wait_until(lambda: there() >= 2 * MIB, WAIT_S, "pieces are stored while the file comes")

    def goes_on() -> bool:
        nonlocal answer
        offset = there()
        answer = ask(proxy.address, "PUT", f"{path}?offset_bytes={offset}&size_bytes={len(data)}", data[offset:])
        return answer.status not in (400, 429)  # the broken call isn't over yet, or has written one more piece since

    answer = Answer(0, http.client.HTTPMessage(), b"")
    assert 2 * MIB <= there() <= cut
    wait_until(goes_on, WAIT_S, "the broken call is over")
    assert answer.status == 200, answer.body
    assert (answer.json["upload"]["complete"], sha256(answer.json["upload"])) == (True, hashlib.sha256(data).digest())
    assert ask(proxy.address, "PUT", path, data).status == 409, "it is complete"
    assert ask(proxy.address, "DELETE", path).status == 200
    assert ask(proxy.address, "GET", path).status == 404


def test_parts_as_large_as_the_caller_likes(proxy: Proxy) -> None:
    path, parts = f"/v1/uploads/{uuid.uuid4().hex}", [bytes([part]) * 700_000 for part in range(5)]
    for number, part in enumerate(parts):
        query = f"offset_bytes={number * 700_000}&size_bytes={5 * 700_000}"
        upload = ask(proxy.address, "PUT", f"{path}?{query}", part).json["upload"]
        assert upload["complete"] == (number == 4)
    assert sha256(upload) == hashlib.sha256(b"".join(parts)).digest()
    refused = create(proxy, {"upload_id": upload["upload_id"]})
    assert (refused.status, "media.image" in refused.json["message"]) == (400, True), "it is no picture"


def test_errors_name_what_is_wrong(proxy: Proxy) -> None:
    unknown = uuid.uuid4().hex
    assert create(proxy, {"upload_id": unknown}).status == 404
    assert ask(proxy.address, "PUT", "/v1/uploads/mine", b"x").status == 400
    ahead = ask(proxy.address, "PUT", f"/v1/uploads/{unknown}?offset_bytes=5", b"x")
    assert (ahead.status, "offset_bytes" in ahead.json["message"]) == (400, True)
    large = ask(proxy.address, "POST", f"/v1/uploads?size_bytes={17 * MIB}", b"x")
    assert (large.status, "16777216" in large.json["message"]) == (400, True)
