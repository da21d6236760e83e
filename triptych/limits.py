"""How much a call may carry and how long it may take.

The time of a call grows with its size. A fixed bound would break calls over a slow line, and each retry would send
everything again.
"""

from __future__ import annotations

from triptych.errors import InvalidRequest

REQUEST_BYTES_MAX = 16 * 2**20
"""Largest request with its files. protobuf and gRPC parse and copy it in one go, which holds an event loop for less
than 50 ms. It has room for a minute of 720p, or for eight large photographs."""
BYTES_PER_S_MIN = 125_000.0
"""Slowest line of a client or a worker to the controller: 1 Mbit/s. The largest request takes two minutes."""
ROOM_BYTES_PER_S_MIN = 2e6
"""Slowest line between workers, which move tensors: a sixth of a network of 100 Mbit/s. Default of a worker's setting
`room_bytes_per_s_min`. The largest known hand-offs (tens of MB) then get less than a minute, and a peer that hangs
holds a job no longer than that."""
DISK_BYTES_PER_S_MIN = 20e6
"""Slowest disk that a model is read from, a shared one. Each worker gets the time for the whole model."""
LARGE_BYTES = 64 * 2**10
"""Size of a large call: it takes more than half a second on the slowest line."""
SEED_LIMIT = 2**32
"""Drawn seeds are below this, so that they are easy to repeat by hand."""
DURATION_S_MAX = 1e8
"""Longest duration: three years. gRPC treats a time-out that it can't add to the present time as passed."""
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def allowance_s(size_bytes: float, bytes_per_s: float = BYTES_PER_S_MIN) -> float:
    """The time that bytes add to a call."""
    return size_bytes / bytes_per_s


def bytes_text(size_bytes: float) -> str:
    """A size, for example `1.5 GiB`."""
    for unit in _BYTE_UNITS[:-1]:
        if size_bytes < 1024:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.3g} {_BYTE_UNITS[-1]}"


def check_seconds(field: str, value: float) -> float:
    """Return a duration. Raises InvalidRequest unless it is a number from 0 to DURATION_S_MAX."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= DURATION_S_MAX:
        raise InvalidRequest(field, value, f"seconds from 0 to {DURATION_S_MAX:g}")
    return value
