"""The interface between rings and verbs: an opened card, its queue pairs, and the constants of a connection.

The terms are those of the InfiniBand specification. Two bindings implement it, each in a file of its own: pyverbs,
which comes with the machine's rdma-core, and the wheel `ibverbs`. Their calls block for microseconds, raise OSError,
and belong to one thread.
"""

from __future__ import annotations

import errno
import importlib
import secrets
from collections.abc import Callable, Sequence
from enum import IntEnum, IntFlag
from typing import NamedTuple, Protocol

from triptych import rdma_devices as devices
from triptych.errors import NoCard
from triptych.v1.ring_service_pb2 import QueuePairAddress

BINDINGS = {"pyverbs": "PyverbsCard", "ibverbs": "IbverbsCard"}
"""The class of each binding, in the order in which they are tried. pyverbs always fits its machine."""
INSTALL = (
    "install the system package python3-pyverbs for the system's own Python (with a virtual environment, link its "
    "folder pyverbs into site-packages), or: pip install 'triptych[rdma]'"
)

ACK_TIMEOUT = 16
"""Local ACK timeout, 4.096 µs · 2^16 = 268 ms: long for any fabric, and longer than a busy host stalls soft-RoCE."""
RETRIES = 6
"""Retries after a timeout, so that a dead peer is given up after 2 s. With 7, soft-RoCE never gives up."""
RNR_RETRIES = 3
MIN_RNR_TIMER = 12
"""0.64 ms. The specification wants a value, but `receiver not ready` can't occur, because no end receives."""
HOP_LIMIT = 64
"""The usual limit of IP packets, since RoCE v2 is routed."""
READ_ATOMIC_DEPTH_MAX = 16
"""Most reads and atomics at the same time. More of them wait in the card, but chains are rarely longer."""
PACKET_SEQUENCE_BITS = 24


class Opcode(IntEnum):
    """The values of `ibv_wr_opcode` that rings need."""

    WRITE = 0
    READ = 4
    COMPARE_SWAP = 5
    FETCH_ADD = 6


class Rights(IntFlag):
    """`ibv_access_flags`: a peer's rights to the memory. `LOCAL` is the card's own right to write."""

    LOCAL = 1
    WRITE = 2
    READ = 4
    ATOMIC = 8


FULL_RIGHTS = Rights.LOCAL | Rights.WRITE | Rights.READ | Rights.ATOMIC
"""A worker's rights to the rings' memory."""


class Status(IntEnum):
    """`ibv_wc_status`."""

    SUCCESS = 0
    LOC_LEN_ERR = 1
    LOC_QP_OP_ERR = 2
    LOC_EEC_OP_ERR = 3
    LOC_PROT_ERR = 4
    WR_FLUSH_ERR = 5
    MW_BIND_ERR = 6
    BAD_RESP_ERR = 7
    LOC_ACCESS_ERR = 8
    REM_INV_REQ_ERR = 9
    REM_ACCESS_ERR = 10
    REM_OP_ERR = 11
    RETRY_EXC_ERR = 12
    RNR_RETRY_EXC_ERR = 13


class WorkRequest(NamedTuple):
    """One operation for the card. An atomic compares with or adds `first`, and swaps in `second`."""

    opcode: Opcode
    local_address: int
    size_bytes: int
    remote_address: int
    first: int = 0
    second: int = 0
    is_fenced: bool = False
    """Waits for the reads and atomics before it."""


class QueuePair(Protocol):
    """A reliable connection with a protection domain, a completion queue and one memory region of its own.

    The domain confines the peer: a key is valid only on the connection that it was made for.
    """

    address: QueuePairAddress
    """This end, for the other."""
    remote_key: int
    """The other end's key to the memory."""

    def connect(self, other: QueuePairAddress, *, initiates: bool) -> None:
        """Connect. An end that doesn't initiate stays in the state Ready To Receive: it only answers."""

    def post(self, requests: Sequence[WorkRequest], remote_key: int) -> None:
        """Hand the requests to the card as one list. The last gives a completion, another one only if it fails."""

    def poll(self) -> int | None:
        """The status of the next completion, usually a `Status`; None if there is none yet."""

    def close(self) -> None:
        """Tear everything down. Afterwards no operation of the other end can change the memory."""


class Card(Protocol):
    """An opened device."""

    binding: str
    place: devices.Place
    mtu_bytes: int
    read_atomic_depth: int
    """Most reads and atomics that it answers, or has under way, at the same time."""

    def queue_pair(self, address: int, size_bytes: int, rights: Rights, depth: int) -> QueuePair:
        """Register the memory and make a queue pair with room for `depth` requests; `rights` are its peer's."""

    def close(self) -> None:
        """Close the device, after its queue pairs."""


def new_address(card: Card, queue_pair_number: int) -> QueuePairAddress:
    """The card's end of a new connection."""
    return QueuePairAddress(
        queue_pair_number=queue_pair_number,
        packet_sequence_number=secrets.randbits(PACKET_SEQUENCE_BITS),
        gid=card.place.gid.value,
        lid=card.place.lid,
        mtu_bytes=card.mtu_bytes,
        read_atomic_depth=card.read_atomic_depth,
    )


class Settings(NamedTuple):
    """The settings of a connection, computed in one place for both bindings."""

    mtu_code: int
    """`ibv_mtu`: 1 to 5 for 256 to 4096 bytes."""
    is_global: bool
    """Whether packets carry the global route, as they must on Ethernet."""
    read_atomic_depth: int

    @classmethod
    def of(cls, card: Card, other: QueuePairAddress) -> Settings:
        """The settings for a connection between a card and another end."""
        depth = max(1, min(card.read_atomic_depth, other.read_atomic_depth))
        return cls(mtu_code(min(card.mtu_bytes, other.mtu_bytes)), card.place.link_layer == devices.ETHERNET, depth)


def refusal(place: devices.Place, error: OSError) -> str:
    """The error text for a card that makes no queue pair."""
    hint = "; is the limit of locked memory (ulimit -l) too low?" if error.errno == errno.ENOMEM else ""
    return f"{place} refuses a queue pair: {error}{hint}"


def mtu_bytes(code: int) -> int:
    """The bytes of an `ibv_mtu`."""
    return 128 << code


def mtu_code(size_bytes: int) -> int:
    """The largest `ibv_mtu` of at most so many bytes."""
    return max(1, min(5, (size_bytes // 128).bit_length() - 1))


def open_card(setting: str = "", binding: str = "") -> Card:
    """Open the device that the setting names (see `devices`), with the first binding that works or the given one.

    Raises NoCard with the reason, InvalidRequest for a setting that names no existing device.
    """
    place = devices.choose(setting, devices.ports())
    failures = []
    for name in [binding] if binding else BINDINGS:
        make = find_binding(name)
        if isinstance(make, str):
            failures.append(make)
            continue
        try:
            return make(place)
        except OSError as error:
            failures.append(f"{name}: {error}")
    missing = all("isn't installed" in failure for failure in failures)
    raise NoCard(f"{place.device} can't be used: {'; '.join(failures)}" + (f"; {INSTALL}" if missing else ""))


def find_binding(name: str) -> Callable[[devices.Place], Card] | str:
    """The card class of a binding, or a sentence that says why it can't be loaded."""
    try:
        module = importlib.import_module(f"triptych.rings.verbs.{name}_card")
    except ModuleNotFoundError:
        return f"{name} isn't installed"
    except (ImportError, OSError) as error:
        return f"{name} can't be loaded ({error})"
    make: Callable[[devices.Place], Card] = getattr(module, BINDINGS[name])
    return make
