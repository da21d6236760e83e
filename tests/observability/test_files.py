"""What ships for Prometheus, Grafana and containers is whole, and says of each alert what to do."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observability import queries
from tests.observability.prometheus import ROOT, SHIPPED, rules

RUNBOOK = ROOT / "docs" / "runbook.md"
SERVICES = yaml.safe_load((SHIPPED / "compose.yaml").read_text())["services"]


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_configuration_and_rules() -> None:
    promtool("check", "config", str(SHIPPED / "prometheus.yml"))
    promtool("check", "rules", str(SHIPPED / "alerts.yml"))


def test_dashboards_are_what_their_tables_make() -> None:
    spec = importlib.util.spec_from_file_location("dashboards", SHIPPED / "dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert {path.stem for path in made.FOLDER.glob("*.json")} == set(made.DASHBOARDS)
    for name in made.DASHBOARDS:
        assert (made.FOLDER / f"{name}.json").read_text() == made.render(name), "run python dashboards.py"


def test_queries_name_documented_metrics_only() -> None:
    known = queries.documented()
    for key, expression in {**queries.panels(), **queries.alerts()}.items():
        assert queries.metrics(expression), key
        assert queries.metrics(expression) <= known, key


def test_each_documented_metric_is_shown_or_watched_or_a_part_of_what_is() -> None:
    """A metric that nobody looks at is one too many."""
    read = set().union(*map(queries.metrics, (*queries.panels().values(), *queries.alerts().values())))
    shown = {re.sub(r"_(bucket|count|sum)$", "", name) for name in read}
    left_out = {re.sub(r"_(bucket|count|sum)$", "", name) for name in queries.documented()} - shown
    assert left_out == {"all_queues_empty", "process_memory_virtual_bytes"}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_each_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    document, _, section = rule["annotations"]["runbook"].partition("#")
    assert ROOT / document == RUNBOOK
    assert section == rule["alert"].lower()
    assert f"\n## {rule['alert']}\n" in RUNBOOK.read_text()
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"]


def test_the_runbook_has_no_section_without_its_alert() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.MULTILINE) == [rule["alert"] for rule in rules()]


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_mounts_what_is_there_under_a_pinned_image(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"])
    named = yaml.safe_load((SHIPPED / "compose.yaml").read_text())["volumes"]
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert source in named or (SHIPPED / source).exists(), volume
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), port


def test_what_configurations_name_is_mounted_there() -> None:
    mounts = {
        name: {volume.split(":")[1]: volume.split(":")[0] for volume in service.get("volumes", [])}
        for name, service in SERVICES.items()
    }
    (config,) = (flag.partition("=")[2] for flag in SERVICES["prometheus"]["command"] if "config.file" in flag)
    settings = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    found = [listed for job in settings["scrape_configs"] for listed in job.get("file_sd_configs", [])]
    targets = [path for listed in found for path in listed["files"]]
    for path in (Path(config).name, *settings["rule_files"], *targets):
        assert mounts["prometheus"][str(Path(config).parent / path)] == f"./{path}"
    collector = SERVICES["collector"]["command"][0].partition("=")[2]
    assert mounts["collector"][collector] == "./collector.yaml"
    provider = SHIPPED / "grafana" / "provisioning" / "dashboards" / "dashboards.yaml"
    (own,) = yaml.safe_load(provider.read_text())["providers"]
    assert mounts["grafana"][own["options"]["path"]] == "./grafana/dashboards"


def test_collector_and_grafana_name_parts_that_there_are() -> None:
    collector = yaml.safe_load((SHIPPED / "collector.yaml").read_text())
    for pipeline in collector["service"]["pipelines"].values():
        for part in ("receivers", "processors", "exporters"):
            assert set(pipeline[part]) <= collector[part].keys()
    sources = yaml.safe_load((SHIPPED / "grafana/provisioning/datasources/datasources.yaml").read_text())["datasources"]
    uids = {source["uid"] for source in sources}
    for path in (SHIPPED / "grafana" / "dashboards").glob("*.json"):
        assert set(re.findall(r'"type": "prometheus",\s+"uid": "(\w+)"', path.read_text())) <= uids
