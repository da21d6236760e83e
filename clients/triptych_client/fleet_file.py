"""A fleet in one TOML file, for `triptych up --fleet`: a section for each role, and for what they have in common.

    [common]        settings of every process
    [controller]    settings of the controller
    [workers]       settings and means of all workers
    [encoder], [transformer], [decoder]    how many (`count`), and settings and means of one role

A role's section holds what the file of such a worker's `--config` holds, and stands before `[workers]`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.config import Field, check_table
from triptych.errors import InvalidRequest
from triptych.means import options, tables
from triptych.means.options import RoleMeans, merged
from triptych.roles import ROLE_NAMES
from triptych_client.fleet_plan import (
    COMMON_SETTINGS,
    CONTROLLER_SETTINGS,
    WORKER_SETTINGS,
    WORKERS_OF_ROLE_MAX,
    RolePlan,
)

SECTIONS = ("common", "controller", "workers", *ROLE_NAMES)
FLEET_WIDE = ("model", "revision", "variant", "fake_model")
"""Settings of workers that a role can't have otherwise than the others: they would serve another model."""
COUNT = "count"


@dataclass(frozen=True)
class FleetFile:
    """What a file says: `settings` of `FleetPlan`, and plans by role."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[str, RolePlan] = field(default_factory=lambda: {role: RolePlan() for role in ROLE_NAMES})

    def means_of(self, role: str) -> RoleMeans:
        """The means of a role: its own section's over those of all workers."""
        return options.of_json("means", str(self.roles[role].settings.get("means", self.settings.get("means", ""))))

    def for_one_job(self) -> FleetFile:
        """Without what is the controller's or for others' calls, and with one worker of each role."""
        own = {"tls", "tokens", "metrics_port", *(f.name for f in CONTROLLER_SETTINGS)}
        settings = {name: value for name, value in self.settings.items() if name not in own}
        roles = {role: RolePlan(1, plan.device, plan.dtype, plan.settings) for role, plan in self.roles.items()}
        return FleetFile(settings, roles)


def read(path: str) -> FleetFile:
    """Read a fleet's file; an empty path is a file that says nothing.

    Raises InvalidRequest that names the file, the key, its value and what is accepted.
    """
    if not path:
        return FleetFile()
    try:
        content = tomllib.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InvalidRequest("fleet", path, f"a readable TOML file ({error})") from error
    for name, section in content.items():
        if name not in SECTIONS:
            accepted = tables.accepted_keys(name, SECTIONS).replace("keys", "sections", 1)
            raise InvalidRequest(f"{path}: {name}", section, accepted)
        if not isinstance(section, Mapping):
            raise InvalidRequest(f"{path}: {name}", section, f"a table [{name}]")
    settings = {
        **_section(path, content, "common", COMMON_SETTINGS),
        **_section(path, content, "controller", CONTROLLER_SETTINGS),
        **_section(path, content, "workers", WORKER_SETTINGS),
    }
    return FleetFile(settings, {role: _role(path, content, role, settings) for role in ROLE_NAMES})


def _section(path: str, content: Mapping[str, Any], name: str, fields: list[Field]) -> dict[str, Any]:
    return check_table(f"{path}: {name}.", content.get(name, {}), fields)


def _role(path: str, content: Mapping[str, Any], role: str, general: Mapping[str, Any]) -> RolePlan:
    section = dict(content.get(role, {}))
    count = section.pop(COUNT, 1)
    if type(count) is not int or not 1 <= count <= WORKERS_OF_ROLE_MAX:
        raise InvalidRequest(f"{path}: {role}.{COUNT}", count, f"1 to {WORKERS_OF_ROLE_MAX}")
    for name in FLEET_WIDE:
        if name in section:
            accepted = f"no such key here: {name} is the fleet's, in [workers]"
            raise InvalidRequest(f"{path}: {role}.{name}", section[name], accepted)
    settings = check_table(f"{path}: {role}.", section, [f for f in WORKER_SETTINGS if f.name not in FLEET_WIDE])
    if "means" in settings and general.get("means"):
        both = merged(json.loads(general["means"]), json.loads(settings["means"]))
        settings["means"] = json.dumps(both, sort_keys=True)
    return RolePlan(count, settings.pop("device", ""), settings.pop("dtype", ""), settings)
