"""The RDMA devices of this machine, as the kernel lists them, and the choice of one. No binding is needed.

A setting names a device: `DEVICE[:PORT[:GID_INDEX]]`, for example `mlx5_0`, `mlx5_0:1` or `mlx5_0:1:3`. Without a port
it is the first active one, and without a GID index, by the port's link layer,

    Ethernet      the first RoCE v2 GID with an IPv4 address, else the first RoCE v2 one that isn't link-local, else any
    InfiniBand    GID 0
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from triptych.errors import InvalidRequest, NoCard

DEVICES = Path("/sys/class/infiniband")
"""Where the kernel lists RDMA devices; absent where it has none."""
GIDS_READ_MAX = 64
"""Most entries of a GID table that are read. Tables are filled from the start, with two entries for each address of the
interface. Some tables have a thousand entries, and each is a file."""
ETHERNET = "Ethernet"
ROCE_V2 = "RoCE v2"
IPV4_MAPPED = bytes(10) + b"\xff\xff"
"""First twelve bytes of a GID made from an IPv4 address."""
LINK_LOCAL = b"\xfe\x80"


@dataclass(frozen=True)
class Gid:
    """One filled entry of a port's GID table."""

    index: int
    value: bytes
    kind: str
    """`RoCE v2`, or `IB/RoCE v1`."""

    def __str__(self) -> str:
        return self.value.hex(":", 2)


class Port(NamedTuple):
    """One port of a device."""

    device: str
    number: int
    is_active: bool
    link_layer: str
    lid: int
    gids: tuple[Gid, ...]


class Place(NamedTuple):
    """The device, port and GID that a queue pair is bound to."""

    device: str
    port: int
    link_layer: str
    lid: int
    gid: Gid

    def __str__(self) -> str:
        return f"{self.device}:{self.port}:{self.gid.index}"


def ports(devices: Path = DEVICES) -> list[Port]:
    """Every port of every device, ordered by name."""
    if not devices.is_dir():
        return []
    return [
        _port(device.name, port)
        for device in sorted(devices.iterdir())
        for port in sorted((device / "ports").iterdir(), key=lambda path: int(path.name))
    ]


def choose(setting: str, found: Sequence[Port]) -> Place:
    """The place that the setting names, or the best one if it is empty.

    Raises NoCard if no place can be used, InvalidRequest if the setting names a device that isn't there.
    """
    device, number, index = _parse(setting)
    if not found:
        raise NoCard("this machine has no RDMA device")
    names = sorted({port.device for port in found})
    if device and device not in names:
        raise InvalidRequest("rdma_device", setting, "one of the devices " + ", ".join(names))
    fitting = [port for port in found if device in ("", port.device) and number in (None, port.number)]
    active = [port for port in fitting if port.is_active]
    for port in active:
        gid = _best(port) if index is None else next((gid for gid in port.gids if gid.index == index), None)
        if gid is not None:
            return Place(port.device, port.number, port.link_layer, port.lid, gid)
    if active:
        raise NoCard(f"port {active[0].number} of {active[0].device} has no usable GID: has its interface an address?")
    raise NoCard(f"no port of {device or ', '.join(names)} is active")


def _parse(setting: str) -> tuple[str, int | None, int | None]:
    device, *numbers = setting.split(":")
    if len(numbers) > 2 or not all(number.isdigit() for number in numbers) or (numbers and not device):
        raise InvalidRequest("rdma_device", setting, "DEVICE[:PORT[:GID_INDEX]], for example mlx5_0:1:3")
    port, index, *_ = [*(int(number) for number in numbers), None, None]
    return device, port, index


def _best(port: Port) -> Gid | None:
    if port.link_layer != ETHERNET:
        return next(iter(port.gids), None)
    routable = [gid for gid in port.gids if gid.kind == ROCE_V2]
    return min(
        routable,
        key=lambda gid: (not gid.value.startswith(IPV4_MAPPED), gid.value.startswith(LINK_LOCAL)),
        default=next(iter(port.gids), None),
    )


def _port(device: str, path: Path) -> Port:
    gids = []
    entries = sorted((path / "gids").iterdir(), key=lambda entry: int(entry.name))
    for entry in entries[:GIDS_READ_MAX]:
        value = bytes.fromhex(_read(entry).replace(":", ""))
        if any(value):
            gids.append(Gid(int(entry.name), value, _read(path / "gid_attrs" / "types" / entry.name)))
    is_active = _read(path / "state").startswith("4:")  # `4: ACTIVE`, the number being the kernel's
    lid = int(_read(path / "lid") or "0", 16)
    return Port(device, int(path.name), is_active, _read(path / "link_layer"), lid, tuple(gids))


def _read(path: Path) -> str:
    """The line of a file; empty if the kernel refuses, as it does for entries that are gone."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def address_of(mapping: mmap.mmap) -> int:
    """Where a writable mapping lies in this process."""
    # The temporary export is dropped immediately. It would keep the mapping from being closed.
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))
