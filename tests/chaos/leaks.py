"""What a process holds, before and after: file descriptors, threads, memory; and what is left when all have ended."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

FDS_GROWTH_MAX = 16
"""Connections of a worker or client that comes or goes, each with its event descriptors."""
THREADS_GROWTH_MAX = 4 + 18
"""gRPC's own pool gains and loses some. Pools of the controller's start their threads when they need them: 16 that read
results, one that sweeps, one that prunes."""
RSS_GROWTH_MAX_BYTES = 64 * 2**20
"""Caches that fill once: messages' pools, SQLite's pages, and the allocator's free lists of the busiest moment."""


@dataclass(frozen=True)
class Sample:
    """Of one process."""

    fds: int
    threads: int
    rss_bytes: int

    @classmethod
    def of(cls, pid: int) -> Sample:
        """Take one now."""
        process = psutil.Process(pid)
        with process.oneshot():
            return cls(process.num_fds(), process.num_threads(), process.memory_info().rss)

    def __str__(self) -> str:
        return f"{self.fds} fds, {self.threads} threads, {self.rss_bytes / 2**20:.0f} MiB"


def growth(before: Sample, after: Sample) -> list[str]:
    """What has grown beyond its bound."""
    found = []
    if after.fds > before.fds + FDS_GROWTH_MAX:
        found.append(f"file descriptors: {before.fds}, then {after.fds}; allowed {FDS_GROWTH_MAX} more")
    if after.threads > before.threads + THREADS_GROWTH_MAX:
        found.append(f"threads: {before.threads}, then {after.threads}; allowed {THREADS_GROWTH_MAX} more")
    if after.rss_bytes > before.rss_bytes + RSS_GROWTH_MAX_BYTES:
        grown = (after.rss_bytes - before.rss_bytes) >> 20
        found.append(f"memory: {grown} MiB more; allowed {RSS_GROWTH_MAX_BYTES >> 20}")
    return found


def orphans(token: str) -> list[str]:
    """Processes whose command names `token`, other than this one and those above it."""
    own = {psutil.Process().pid, *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        command = " ".join(process.info["cmdline"] or [])
        if token in command and process.info["pid"] not in own and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(f"{process.info['pid']} {command[:200]}")
    return found
