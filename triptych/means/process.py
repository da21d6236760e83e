"""What a worker's process must be told before torch is imported and threads are started: its allocator, its NUMA node.

Threads inherit both, so `apply` is called by the main thread, first of all.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import logging
import os
import sys
from pathlib import Path

from triptych.environment import set_allocator
from triptych.errors import InvalidRequest
from triptych.means.options import ProcessMeans

NODES = Path("/sys/devices/system/node")
"""Linux's folder of NUMA nodes; none where the kernel doesn't know any."""
log = logging.getLogger(__name__)


def apply(means: ProcessMeans) -> None:
    """Raises InvalidRequest for a node that this machine hasn't, or whose cores this process may not use."""
    if means.allocator:
        if "torch" in sys.modules:
            log.warning("torch is loaded already: process.allocator has no effect")
        set_allocator(means.allocator)
    if means.numa_node >= 0:
        bind(means.numa_node)


def bind(node: int, nodes: Path = NODES) -> None:
    """Run on a node's cores only, and take memory of that node where libnuma is installed."""
    cores = cores_of(node, nodes) & os.sched_getaffinity(0)
    if not cores:
        raise InvalidRequest("process.numa_node", node, "a node with cores that this process may use")
    os.sched_setaffinity(0, cores)
    if not _bind_memory(node):
        log.warning("libnuma isn't installed: memory comes from any node, though cores are those of node %d", node)


def cores_of(node: int, nodes: Path = NODES) -> set[int]:
    """The cores of a node, from the kernel's list (`0-3,8`). Raises InvalidRequest where there is no such node."""
    try:
        text = (nodes / f"node{node}" / "cpulist").read_text().strip()
    except OSError as error:
        known = sorted(int(path.name[4:]) for path in nodes.glob("node[0-9]*"))
        accepted = f"one of this machine's nodes: {', '.join(map(str, known)) or 'it tells of none'}"
        raise InvalidRequest("process.numa_node", node, accepted) from error
    cores: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return cores


def _bind_memory(node: int) -> bool:
    """numa(3): prefer the node's memory, and take another's where it is full. False without libnuma."""
    name = ctypes.util.find_library("numa")
    if name is None:
        return False
    library = ctypes.CDLL(name)
    if library.numa_available() < 0:
        return False
    library.numa_set_preferred(node)
    return True
