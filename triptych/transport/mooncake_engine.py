"""Mooncake's Transfer Engine, and the only file that imports it.

Facts that shape this file: the engine takes RDMA where it finds a device, whatever it was asked for, unless
`MC_FORCE_TCP` stands in the environment when it starts; it reads its settings from the environment only; a
transfer to a dead peer or outside registered memory returns -1 within milliseconds; a stopped peer is noticed by
its own timeout only. It listens on all interfaces and has no authentication: firewall its ports, or keep to a
private network.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from triptych.errors import MissingExtra, TransferFailed, WrongState

TRANSFER_TIMEOUT_S = 30
"""How long the engine itself waits for a transfer. A silent peer holds a thread for so long, no longer."""
_SETTINGS = {
    "MC_FORCE_TCP": "1",
    "MC_TRANSFER_TIMEOUT": str(TRANSFER_TIMEOUT_S),
    "MC_TCP_PROGRESS_TIMEOUT_SEC": str(TRANSFER_TIMEOUT_S),
    "MC_LOG_LEVEL": "ERROR",
}
"""Its settings. This is the only place of the project that writes to the environment."""
_LIBRARIES = "the system libraries libibverbs1, libnuma1 and libcurl4"


class MooncakeEngine:
    """One engine; a process needs one. Close it before the memory that is registered with it goes."""

    def __init__(self, engine: Any, host: str) -> None:
        self._engine = engine
        self._registered: list[int] = []
        self.session = f"{host}:{engine.get_rpc_port()}"

    @classmethod
    def start(cls, host: str) -> MooncakeEngine:
        """Start the engine over TCP; `host` is the name or address under which other hosts reach this one.

        Raises MissingExtra without the package, WrongState when it can't be loaded or started.
        """
        os.environ.update(_SETTINGS)
        try:
            from mooncake.engine import TransferEngine
        except ModuleNotFoundError as error:
            raise MissingExtra("mooncake-transfer-engine-non-cuda", "serve", "the mover mooncake") from error
        except ImportError as error:
            raise WrongState(f"Mooncake can't be loaded ({error}); it needs {_LIBRARIES}") from error
        engine = TransferEngine()
        if engine.initialize(host, "P2PHANDSHAKE", "tcp", "") != 0:
            raise WrongState(f"Mooncake can't start on host {host!r}; its log on stderr says why")
        return cls(engine, host)

    @property
    def protocol(self) -> str:
        """What really carries the bytes, by the devices that this process has open: `tcp` or `rdma`."""
        for descriptor in Path("/proc/self/fd").iterdir():
            try:
                target = os.readlink(descriptor)
            except OSError:  # closed since it was listed
                continue
            if target.startswith("/dev/infiniband/"):
                return "rdma"
        return "tcp"

    def register(self, address: int, size_bytes: int) -> None:
        """Make memory readable for peers and usable for `read`. Once at start, never per request."""
        if self._engine.register_memory(address, size_bytes) != 0:
            raise WrongState(f"Mooncake refused to register {size_bytes} bytes; its log on stderr says why")
        self._registered.append(address)

    def read(self, session: str, address: int, peer_address: int, size_bytes: int) -> None:
        """Copy a peer's registered memory into ours. Blocks, without the GIL. Raises TransferFailed."""
        status = self._engine.transfer_sync_read(session, address, peer_address, size_bytes)
        if status != 0:
            raise TransferFailed(f"Mooncake could not read {size_bytes} bytes from {session} (status {status})")

    def close(self) -> None:
        """Unregister everything and stop the engine. Later reads from here fail at the peers."""
        for address in self._registered:
            self._engine.unregister_memory(address)
        self._registered.clear()
        self._engine = None
