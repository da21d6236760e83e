"""A network namespace for each worker, joined to the controller's by a bridge; partitions, delay and loss between them.

The whole run lives in a network and a mount namespace of its own (`enter`), which the kernel takes away with its last
process, however it ends. So nothing of this is ever seen, or left, outside.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from tests.chaos.plan import Kind

INSIDE_FLAG = "--inside"
"""Given to the process that runs in the namespaces."""
TOOLS = ("unshare", "nsenter", "ip", "tc", "mount", "umount")
_UNSHARE = ("unshare", "--net", "--mount", "--propagation", "private")
NAMES = "/run/netns"
SUBNET = "10.77.0"
BRIDGE = "hub"
HUB_ADDRESS = f"{SUBNET}.1"
WORKER_PORT = 7000
PROBE_TIMEOUT_S = 10.0
_NETEM = {Kind.DELAY: "netem delay 200ms 100ms", Kind.LOSS: "netem loss 25%"}
_TBF = {
    Kind.DELAY: "tbf rate 256kbit burst 3000 latency 800ms",
    Kind.LOSS: "tbf rate 128kbit burst 3000 limit 4500",
}
"""Where the kernel has no netem: a token bucket delays what queues, and drops what finds a short queue full."""


def reason_against() -> str:
    """Why this machine or user can't have namespaces; empty where it can."""
    if os.geteuid() != 0:
        return "network namespaces and small disks take root"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"network namespaces and small disks take the commands {', '.join(missing)}"
    probe = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S)
    return f"no namespaces here: {probe.stderr.strip()}" if probe.returncode else ""


def enter(module: str, arguments: Sequence[str]) -> None:
    """Become another run of Python, of a module with arguments, inside new namespaces. Doesn't return."""
    sys.stdout.flush()
    os.execvp(_UNSHARE[0], [*_UNSHARE, sys.executable, "-m", module, *arguments])


def is_inside() -> bool:
    """Whether this process has left its parent's network, by `enter`."""
    return os.readlink("/proc/self/ns/net") != os.readlink(f"/proc/{os.getppid()}/ns/net")


class Network:
    """The bridge and its namespaces. Call `open` inside the run's own namespaces."""

    def __init__(self, workers: Sequence[str]) -> None:
        self._numbers = {name: number for number, name in enumerate(workers)}
        self._impairments = _NETEM

    async def open(self) -> None:
        """Make everything, and find out how this kernel delays and loses."""
        os.makedirs(NAMES, exist_ok=True)
        await run("mount", "-t", "tmpfs", "chaos", NAMES)
        await run("ip", "link", "set", "lo", "up")
        await run("ip", "link", "add", BRIDGE, "type", "bridge")
        await run("ip", "addr", "add", f"{HUB_ADDRESS}/24", "dev", BRIDGE)
        await run("ip", "link", "set", BRIDGE, "up")
        for name in self._numbers:
            await self._join(name)
        first = self._port(next(iter(self._numbers)))
        try:
            await run("tc", "qdisc", "add", "dev", first, "root", *_NETEM[Kind.DELAY].split())
        except OSError:
            self._impairments = _TBF
        else:
            await run("tc", "qdisc", "del", "dev", first, "root")

    async def close(self) -> list[str]:
        """Take it down. Returns the namespaces that are left."""
        for name in self._numbers:
            await run("ip", "netns", "del", name)
        await run("ip", "link", "del", BRIDGE)
        left = (await run("ip", "netns", "list")).split()
        await run("umount", NAMES)
        return left

    @property
    def impairment(self) -> str:
        """How delay and loss are made: `netem` or `tbf`."""
        return self._impairments[Kind.DELAY].split()[0]

    def address(self, name: str) -> str:
        """Where a worker serves."""
        return f"{SUBNET}.{10 + self._numbers[name]}:{WORKER_PORT}"

    def prefix(self, name: str) -> list[str]:
        """Put before a command so that it runs in the worker's namespace."""
        return ["nsenter", f"--net={NAMES}/{name}"]

    async def partition(self, name: str) -> None:
        """From now on the worker's packets go nowhere; nobody is told."""
        await run("ip", "link", "set", self._port(name), "nomaster")

    async def heal(self, name: str) -> None:
        """Undo `partition`."""
        await run("ip", "link", "set", self._port(name), "master", BRIDGE)

    async def impair(self, name: str, kind: Kind) -> None:
        """Delay or lose packets, both ways."""
        words = self._impairments[kind].split()
        await run("tc", "qdisc", "add", "dev", self._port(name), "root", *words)
        await run(*self.prefix(name), "tc", "qdisc", "add", "dev", "eth0", "root", *words)

    async def restore(self, name: str) -> None:
        """Undo `impair`."""
        await run("tc", "qdisc", "del", "dev", self._port(name), "root")
        await run(*self.prefix(name), "tc", "qdisc", "del", "dev", "eth0", "root")

    def _port(self, name: str) -> str:
        return f"port{self._numbers[name]}"

    async def _join(self, name: str) -> None:
        port, inside = self._port(name), self.prefix(name)
        await run("ip", "netns", "add", name)
        await run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        await run("ip", "link", "set", port, "master", BRIDGE)
        await run("ip", "link", "set", port, "up")
        await run(*inside, "ip", "addr", "add", f"{self.address(name).partition(':')[0]}/24", "dev", "eth0")
        await run(*inside, "ip", "link", "set", "eth0", "up")
        await run(*inside, "ip", "link", "set", "lo", "up")


async def run(*command: str) -> str:
    """Run a command and return what it printed. Raises OSError with its complaint."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    if process.returncode:
        raise OSError(f"{' '.join(command)}: {err.decode().strip()}")
    return out.decode()
