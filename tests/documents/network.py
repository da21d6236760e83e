"""A network of the test's own, so that the addresses that documents name are free."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

import pytest

CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
PORTS = (7070, 7171, 9464)


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """This thread, and what it starts, sees nothing but a loopback of its own. Without root: this machine's."""
    if os.geteuid() != 0:
        for port in PORTS:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    pytest.skip(f"port {port} is in use, and a network of a test's own takes root")
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "no network namespace can be made here")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            request = struct.pack("16sh14x", b"lo", 0)
            flags = struct.unpack("16sh14x", fcntl.ioctl(one, SIOCGIFFLAGS, request))[1]
            fcntl.ioctl(one, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))
        yield
    finally:
        libc.setns(before, CLONE_NEWNET)
        os.close(before)
