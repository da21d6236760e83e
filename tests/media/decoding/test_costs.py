"""Hostile files are refused, or decoded, within the memory and time of docs/costs.md."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.fleet.processes import wait_until
from tests.media.decoding import files
from triptych.errors import InvalidRequest, Unavailable
from triptych.media.decoding import bounds, decode
from triptych.media.decoding.headers import IMAGE, VIDEO, File
from triptych.media.decoding.pool import REQUESTS_MAX, Decoders
from triptych.media.encoding import encode_outputs

PARENT_BYTES_MAX = 32 * 2**20
"""Most that a process grows by while its children check: what it writes to them, and nothing that is decoded."""


def children() -> list[psutil.Process]:
    """This process's children that decode."""
    return [one for one in psutil.Process().children() if "triptych.media.decoding.child" in one.cmdline()]


def child_of(_decoders: Decoders) -> psutil.Process:
    """The one child that there is."""
    (child,) = children()
    return child


def peak_bytes(pid: int | str = "self") -> int:
    """The most memory that a process ever had."""
    with open(f"/proc/{pid}/status") as file:
        (line,) = [line for line in file if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@contextmanager
def costs_little(decoders: Decoders) -> Iterator[None]:
    """Neither this process nor its child takes more than it may."""
    decoders.check(files.picture(files.png(8, 8)))
    child = child_of(decoders)
    own_bytes, child_bytes, used = peak_bytes(), peak_bytes(child.pid), child.cpu_times()
    yield
    assert peak_bytes() - own_bytes < PARENT_BYTES_MAX
    if child.is_running():
        assert peak_bytes(child.pid) - child_bytes < bounds.CHILD_BYTES_MAX
        after = child.cpu_times()
        assert after.user + after.system - used.user - used.system < bounds.CPU_S_MAX


@pytest.mark.parametrize("name", files.REFUSED)
def test_what_costs_too_much_is_refused(name: str) -> None:
    hostile = files.REFUSED[name]()
    with (
        Decoders() as decoders,
        costs_little(decoders),
        pytest.raises(InvalidRequest, match=r"^media\.(image|video) is"),
    ):
        decoders.check(hostile)


@pytest.mark.parametrize("name", files.TAKEN)
def test_what_may_be_taken_costs_no_more_than_it_may(name: str) -> None:
    odd = files.TAKEN[name]()
    with Decoders() as decoders, costs_little(decoders):
        try:
            decoders.check(odd)
        except InvalidRequest as error:
            print(error)


def test_a_stream_of_another_size_than_its_description_is_counted_as_it_is() -> None:
    """The description says 16 × 16; the stream has 65 frames of 2048 × 2048, more than all media may have."""
    black = np.zeros((1, 65, 2048, 2048, 3), np.uint8)
    data = files.bent(encode_outputs({"videos": black}, "mp4", 16)[0].data, b"stsd", 40, b"\0\x10\0\x10")
    with Decoders() as decoders, costs_little(decoders), pytest.raises(InvalidRequest, match="all files together"):
        decoders.check(files.clip(data))


def test_memory_is_bounded_by_the_kernel() -> None:
    with Decoders(bounds.Limits(memory_bytes=64 * 2**20)) as decoders:
        decoders.check(files.picture(files.png(256, 256)))
        child = child_of(decoders)
        with pytest.raises(InvalidRequest, match=r"^media\.image is .* within 64 MiB of memory"):
            decoders.check(files.picture(files.png(8192, 8192)))
        with pytest.raises(InvalidRequest, match=r"^media\.image is"):  # its library doesn't say why
            decoders.check(files.picture(files.webp(8000, 8000, 2)))
        assert peak_bytes(child.pid) < 160 * 2**20
        decoders.check(files.picture(files.png(256, 256)))


def test_a_picture_is_gone_before_the_next_is_decoded() -> None:
    """Each takes two copies of its own, as it is and turned. There is no room for a neighbour's beside them."""
    turned = files.picture(files.jpeg_turned(4096)) * 3
    with Decoders(bounds.Limits(memory_bytes=3 * 4 * 4096**2)) as decoders:
        assert len(decoders.decode(turned)) == 3


def test_cpu_time_is_bounded_by_the_kernel_for_each_request() -> None:
    dear = files.picture(files.jpeg_turned(8192, progressive=True)) * 4
    with Decoders(bounds.Limits(cpu_s=1)) as decoders:
        for _ in range(2):
            with pytest.raises(InvalidRequest, match=r"^media is '4 files of .* within 1 s of CPU time"):
                decoders.check(dear)
        decoders.check(files.picture(files.png(256, 256)))


def test_the_dearest_that_headers_let_through_stays_within_the_bounds() -> None:
    """Four of the largest pictures, progressive and to be turned."""
    dear = files.picture(files.jpeg_turned(8192, progressive=True)) * 4
    with Decoders() as decoders, costs_little(decoders):
        decoders.check(dear)
        child = child_of(decoders)
        print(f"{child.cpu_times().user:.1f} s of CPU time, {peak_bytes(child.pid) >> 20} MiB")


def test_a_child_that_hangs_is_killed_and_another_takes_its_place() -> None:
    with Decoders(bounds.Limits(wall_s=1.0)) as decoders:
        decoders.check(files.picture(files.png(8, 8)))
        child = child_of(decoders)
        child.send_signal(signal.SIGSTOP)
        with pytest.raises(Unavailable, match="within 1 s"):
            decoders.check(files.picture(files.png(8, 8)))
        assert not child.is_running()
    with Decoders() as decoders:
        decoders.check(files.picture(files.png(8, 8)))
        child_of(decoders).kill()
        with pytest.raises(Unavailable, match="ended"):
            decoders.check(files.picture(files.png(8, 8)))
        decoders.check(files.picture(files.png(8, 8)))


def test_children_are_used_again_replaced_after_a_while_and_gone_at_the_end() -> None:
    small = files.picture(files.png(8, 8))
    with Decoders() as decoders:
        pids = set()
        for _ in range(REQUESTS_MAX + 1):
            decoders.check(small)
            pids |= {child.pid for child in children()}
        assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(Unavailable):
        decoders.check(small)


def test_a_child_without_work_ends_and_the_next_request_has_another() -> None:
    with Decoders(bounds.Limits(idle_s=0.2)) as decoders:
        decoders.check(files.picture(files.png(8, 8)))
        first = child_of(decoders)
        wait_until(lambda: first.status() == psutil.STATUS_ZOMBIE, 30, "it ends by itself")
        decoders.check(files.picture(files.png(8, 8)))
        assert child_of(decoders).pid != first.pid


def test_a_child_is_the_first_to_go_where_memory_is_short() -> None:
    with Decoders() as decoders:
        decoders.check(files.picture(files.png(8, 8)))
        assert Path(f"/proc/{child_of(decoders).pid}/oom_score_adj").read_text().strip() == "500"


def test_closing_ends_a_check_that_is_under_way() -> None:
    decoders, ended = Decoders(), threading.Event()

    def check() -> None:
        with pytest.raises(Unavailable):
            decoders.check(files.picture(files.jpeg_turned(8192)) * 4)
        ended.set()

    decoders.check(files.picture(files.png(8, 8)))
    child, thread = child_of(decoders), threading.Thread(target=check)
    before = child.cpu_times().user
    thread.start()
    while child.cpu_times().user < before + 0.1:
        assert thread.is_alive()
        os.sched_yield()
    decoders.close()
    assert ended.wait(30)
    thread.join()


def test_pixels_come_back_as_they_would_be_in_this_process() -> None:
    clip, turned = files.mp4(frames=5, side=64), files.jpeg_turned(64)
    brought = [File("video", VIDEO, clip), File("image", IMAGE, turned), File("image", IMAGE, files.png(31, 1))]
    with Decoders() as decoders:
        started_s = time.monotonic()
        frames, first, second = decoders.decode(brought)
        print(f"{time.monotonic() - started_s:.2f} s")
    expected = decode.decode_all(brought)
    assert isinstance(frames, list)
    for found, wanted in zip([*frames, first, second], [*expected[0], *expected[1:]], strict=True):  # type: ignore[misc]
        assert np.array_equal(np.asarray(found), np.asarray(wanted))
