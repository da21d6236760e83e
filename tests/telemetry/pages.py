"""What a Prometheus page says."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

SCOPE = "otel_scope_"
"""Labels that say who made an instrument: the same for all of ours."""

Page = Mapping[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by a sample's name and labels."""


def scrape(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """The page as it is now."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as page:
        text = page.read().decode()
    return {
        (sample.name, frozenset((k, v) for k, v in sample.labels.items() if not k.startswith(SCOPE))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(page: Page, name: str, **labels: str) -> float:
    """The one sample with a name and exactly these labels. Raises KeyError."""
    return page[name, frozenset(labels.items())]


def series_count(page: Page) -> int:
    """How many series a page has."""
    return len(page)
