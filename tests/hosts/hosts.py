"""Hosts: each a network namespace on one bridge, with a `/dev/shm` of its own. Nothing but the network joins them.

They share the machine's disk, as hosts with a common mount do, and one `/etc/hosts`, which is all that resolves names.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.chaos.network import WORKER_PORT, Network, run
from tests.fleet.processes import CONTROLLER, ROLES, Fleet, worker_names
from tests.fleet.watched import GUARD
from triptych.addresses import Address
from triptych.environment import ClientAccess

SUBNET_6 = "fd77"
HUB_ADDRESS_6 = f"{SUBNET_6}::1"
HOSTS = (CONTROLLER, *worker_names(dict.fromkeys(ROLES, 1)), "decoder-1")
"""Named for the process that runs there."""
FAKE = ("--fake-stage-seconds", "0.3")
TRACE_FILE = "trace.jsonl"
_RULES, _RULES_END = 100, 200
"""Preferences of `shut`'s rules: after the local table, before the main one."""
_IN_HOST = 'mount --bind "$0" /dev/shm && exec "$@"'


class Hosts(Network):
    """See the module's docstring. `folder` is for their files; the tests themselves stand at the hub."""

    def __init__(self, folder: Path) -> None:
        super().__init__(HOSTS)
        self._folder = folder

    async def open(self) -> None:
        await super().open()
        await run("ip", "addr", "add", f"{HUB_ADDRESS_6}/64", "dev", "hub", "nodad")
        for name in HOSTS:
            shared = self._shared_memory(name)
            shared.mkdir(parents=True)
            await run("mount", "-t", "tmpfs", name, str(shared))
            await run(*self.prefix(name), "ip", "addr", "add", f"{self.ip_6(name)}/64", "dev", "eth0", "nodad")
        self._cover("/etc/hosts", "".join(f"{self.ip(name)} {name}\n{self.ip_6(name)} {name}-6\n" for name in HOSTS))
        self._cover("/etc/nsswitch.conf", "hosts: files\n")
        for file in ("hosts", "nsswitch.conf"):
            await run("mount", "--bind", str(self._folder / file), f"/etc/{file}")

    def on(self, name: str) -> list[str]:
        """Put before a command so that it runs on a host, and ends with the tests."""
        return [*GUARD, *self.prefix(name), "unshare", "--mount", "sh", "-c", _IN_HOST, str(self._shared_memory(name))]

    def ip(self, name: str) -> str:
        """A host's IPv4 address."""
        return self.address(name).partition(":")[0]

    def ip_6(self, name: str) -> str:
        """A host's IPv6 address, without brackets."""
        return f"{SUBNET_6}::{10 + HOSTS.index(name)}"

    def sent_bytes(self) -> dict[str, int]:
        """What each host has sent so far, in bytes on the wire."""
        out = subprocess.run(["ip", "-s", "-j", "link"], capture_output=True, check=True, text=True).stdout
        received: dict[str, Any] = {link["ifname"]: link["stats64"]["rx"]["bytes"] for link in json.loads(out)}
        return {name: int(received[self._port(name)]) for name in HOSTS}

    async def shut(self, name: str, but: Sequence[int] = ()) -> None:
        """As a firewall that answers nothing: from now on a host sends TCP from and to these ports only."""
        open_ports = [(way, str(port)) for port in but for way in ("sport", "dport")]
        for preference, (way, port) in enumerate(open_ports, _RULES):
            rule = ("ipproto", "tcp", way, port, "lookup", "main")
            await run(*self.prefix(name), "ip", "rule", "add", "pref", str(preference), *rule)
        last = str(_RULES + len(open_ports))
        await run(*self.prefix(name), "ip", "rule", "add", "pref", last, "ipproto", "tcp", "blackhole")

    async def drop_from(self, name: str, port: int) -> None:
        """As a firewall that answers nothing on one port of a host."""
        rule = ("pref", str(_RULES), "ipproto", "tcp", "sport", str(port), "blackhole")
        await run(*self.prefix(name), "ip", "rule", "add", *rule)

    async def unshut(self, name: str) -> None:
        """Undo `shut` and `drop_from`."""
        rules = json.loads(await run(*self.prefix(name), "ip", "-j", "rule"))
        for rule in rules:
            if _RULES <= rule["priority"] < _RULES_END:
                await run(*self.prefix(name), "ip", "rule", "del", "pref", str(rule["priority"]))

    def _shared_memory(self, name: str) -> Path:
        return self._folder / "shm" / name

    def _cover(self, path: str, text: str) -> None:
        (self._folder / Path(path).name).write_text(text)


class HostsFleet(Fleet):
    """A fleet with each process on its own host, where it serves at `at(name)`: an address or a name without a port."""

    def __init__(
        self,
        hosts: Hosts,
        folder: Path,
        at: Callable[[str], str],
        *,
        model: str = "fake",
        tls: Path | None = None,
        counts: Mapping[str, int] | None = None,
        flags_by_name: Mapping[str, Sequence[str]] | None = None,
        **settings: Any,
    ) -> None:
        """`tls` is the folder of the roles' certificates. `model` is a folder, or `fake` for fake stages."""

        def flags(name: str) -> tuple[str, ...]:
            role = name.partition("-")[0]
            own = () if name == CONTROLLER else ("--address", str(Address(at(name), WORKER_PORT)))
            fake = FAKE if model == "fake" and name != CONTROLLER else ()
            certificate = ("--tls", str(tls / role)) if tls else ()
            given = (flags_by_name or {}).get(name, ())
            return (*own, *fake, *certificate, "--trace-file", str(folder / TRACE_FILE), *given)

        super().__init__(
            folder,
            model,
            counts=counts,
            prefix=hosts.on,
            flags_by_name={name: flags(name) for name in HOSTS},
            controller_flags=("--result-url", f"file://{folder / 'results'}"),
            access=ClientAccess(tls=str(tls / "client")) if tls else None,
            **settings,
        )
        self.endpoint = str(Address(at(CONTROLLER), WORKER_PORT))
        self.trace_file = folder / TRACE_FILE
