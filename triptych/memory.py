"""Addresses of mapped memory, for what registers memory with a card."""

from __future__ import annotations

import ctypes
import mmap


def address_of(mapping: mmap.mmap) -> int:
    """Where a writable mapping lies in this process."""
    # The temporary export is dropped at once: it would keep the mapping from being closed.
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))
