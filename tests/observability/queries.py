"""The queries that ship, and the metrics that they name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from tests.observability.prometheus import SHIPPED, rules
from tests.telemetry.tables import TELEMETRY, quoted, table

NOT_EVERYWHERE = ("hw_", "triptych_text_encoder_")
"""How metrics begin that only machines with an NVIDIA device have, and fleets with a text encoder's process."""
OWN = {"up", "target_info"}
"""Prometheus' own metric, and the one that says whose a page is."""
_CLAUSE = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\b(by|on|without|group_left) \([^)]*\)|\boffset \w+")
_NAME = re.compile(r"\b(?:(?:triptych|queue|all_queues|rpc|process|hw)_\w+|up|target_info)\b")


def is_everywhere(expression: str) -> bool:
    """Whether every fleet has an answer."""
    return not any(start in expression for start in NOT_EVERYWHERE)


def panels() -> Mapping[str, str]:
    """Expressions of all dashboards by dashboard, panel and legend; Grafana's variable filled in."""
    found = {}
    for path in sorted((SHIPPED / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                key = f"{path.stem}: {panel['title']}: {target['legendFormat']}"
                found[key] = target["expr"].replace("$__rate_interval", "15s")
    return found


def alerts() -> Mapping[str, str]:
    """Expressions of all alerts by name."""
    return {rule["alert"]: rule["expr"] for rule in rules()}


def metrics(expression: str) -> set[str]:
    """The names of the series that an expression reads."""
    return set(_NAME.findall(_CLAUSE.sub("", expression)))


def documented() -> set[str]:
    """The names of all series that the document's metrics have on a page."""
    found = set(OWN)
    for row in table(TELEMETRY, "## Metrics"):
        (name,) = quoted(row["on the page"])
        parts = ("_bucket", "_count", "_sum") if row["what"].startswith("histogram") else ("",)
        found |= {name + part for part in parts}
    return found
