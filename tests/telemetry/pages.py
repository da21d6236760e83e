"""What a Prometheus page says."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

SCOPE = "otel_scope_"
"""Labels that say who made an instrument: the same for all of ours."""

Page = Mapping[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by a sample's name and labels."""


def families(port: int) -> list[Metric]:
    """What the page holds now."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as page:
        return list(text_string_to_metric_families(page.read().decode()))


def scrape(port: int) -> Page:
    """The page as it is now."""
    return {
        (sample.name, frozenset((k, v) for k, v in sample.labels.items() if not k.startswith(SCOPE))): sample.value
        for family in families(port)
        for sample in family.samples
    }


def labels(port: int) -> dict[str, set[str]]:
    """The names of all labels by a metric's name, which of a counter ends in `_total`; of histograms without `le`."""
    found = {}
    for family in families(port):
        name = family.name + ("_total" if family.type == "counter" else "")
        own = {label for sample in family.samples for label in sample.labels if not label.startswith(SCOPE)}
        found[name] = own - {"le"}
    return found


def value(page: Page, name: str, **labels: str) -> float:
    """The one sample with a name and exactly these labels. Raises KeyError."""
    return page[name, frozenset(labels.items())]
