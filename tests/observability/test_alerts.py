"""Each alert fires for what it is for, and not for what looks similar: `promtool test rules` on made-up series."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.observability.prometheus import SHIPPED, rules

Series = Mapping[str, str]
"""Values a minute apart, as promtool has them (`0+2x30`: 31 values, each greater by 2), by series."""
ROLES = ("encoder", "transformer", "decoder")


class Case(NamedTuple):
    """When an alert fires, and with what it says."""

    series: Series
    at: str
    labels: Mapping[str, str]
    summary: str
    quiet: tuple[Series, ...]
    """Series with which it doesn't fire at that time."""


def workers(state: str, **counts: str) -> dict[str, str]:
    """Series of workers in a state, by role."""
    return {f'triptych_workers{{role="{role}",state="{state}"}}': values for role, values in counts.items()}


def all_workers(values: str) -> dict[str, str]:
    return workers("idle", **dict.fromkeys(ROLES, values))


def ended(**counts: str) -> dict[str, str]:
    return {f'triptych_jobs_ended_total{{outcome="{outcome}"}}': values for outcome, values in counts.items()}


def calls(method: str, code: str, values: str, error: str = "") -> dict[str, str]:
    labels = f'rpc_method="{method}",rpc_response_status_code="{code}",error_type="{error}"'
    return {f"rpc_server_call_duration_seconds_count{{{labels}}}": values}


def attempts(kind: str, values: str) -> dict[str, str]:
    return {f'triptych_attempts_failed_total{{role="transformer",kind="{kind}"}}': values}


def waiting(values: str) -> dict[str, str]:
    return {'triptych_jobs_unfinished{state="queued"}': values, 'triptych_jobs_unfinished{state="denoising"}': "500x90"}


def unfinished(values: str) -> dict[str, str]:
    return {'triptych_jobs_unfinished{state="queued"}': values, 'triptych_jobs_unfinished{state="denoising"}': values}


def rings(**sizes: str) -> dict[str, str]:
    """What waits in each ring."""
    return {f'queue_sizes{{ring="{ring}",instance="a:1"}}': values for ring, values in sizes.items()}


def device(used: str) -> dict[str, str]:
    labels = '{hw_id="GPU-1",instance="a:1"}'
    return {f"hw_gpu_memory_usage_bytes{labels}": used, f"hw_gpu_memory_limit_bytes{labels}": "100x90"}


TRANSFORMER = {"role": "transformer"}
NO_TRANSFORMER = {**workers("idle", encoder="1x9", transformer="0x9"), **workers("quarantined", transformer="1x9")}
CASES = {
    "TriptychControllerDown": Case({"up": "1x9"}, "2m", {}, "No controller shows its metrics.", (all_workers("0x9"),)),
    "TriptychFleetDown": Case(
        *({**all_workers("0x9"), **waiting("1x9")}, "6m", {}),
        "The controller runs, jobs wait, and no worker is registered.",
        (
            {**workers("idle", encoder="1x9", transformer="0x9"), **waiting("1x9")},
            {**workers("draining", encoder="1x9"), **waiting("1x9")},
            {"up": "1x9"},
            {**all_workers("0x9"), **unfinished("0x9")},
            {**all_workers("0x4 1x5"), **waiting("1x9")},
        ),
    ),
    "TriptychNoWorker": Case(
        {**NO_TRANSFORMER, **rings(phase1="1x9")},
        *("6m", TRANSFORMER, "Jobs wait for a transformer, and none takes work."),
        (
            {**workers("full", encoder="1x9", transformer="1x9"), **rings(phase1="1x9")},
            {**all_workers("0x9"), **rings(phase1="1x9")},
            {**NO_TRANSFORMER, **rings(request="3x9", phase1="0x9", phase2="3x9"), **waiting("1x9")},
        ),
    ),
    "TriptychPageDown": Case(
        {'up{job="triptych",instance="a:1"}': "0x9"},
        *("3m", {"job": "triptych", "instance": "a:1"}, "a:1 doesn't answer Prometheus."),
        ({'up{job="triptych",instance="a:1"}': "1x9"}, {'up{job="collector",instance="a:1"}': "0x9"}),
    ),
    "TriptychNothingEnds": Case(
        {**waiting("1x150"), **ended(succeeded="7x150", failed="0x150")},
        *("120m", {}, "There have been jobs for an hour, and none has ended."),
        (
            {**waiting("1x150"), **ended(succeeded="0x80 1x70")},
            {'triptych_jobs_unfinished{state="queued"}': "1x100 0 1x50", **ended(succeeded="7x150")},
        ),
    ),
    "TriptychJobsFail": Case(
        ended(succeeded="0+2x60", failed="0+1x60", cancelled="0+9x60"),
        *("30m", {}, "33.33% of the jobs that ended lately have no result."),
        (
            ended(succeeded="0+20x60", failed="0+1x60"),
            ended(succeeded="0+1x60", cancelled="0+9x60", failed="0x60"),
            ended(succeeded="0x60", failed="0x25 2x35"),
        ),
    ),
    "TriptychDeadLetters": Case(
        {'triptych_dead_letters_total{stage="transformer"}': "0x5 1x20"},
        *("8m", {"stage": "transformer"}, "Jobs became dead letters at the transformer."),
        ({'triptych_dead_letters_total{stage="transformer"}': "3x30"},),
    ),
    "TriptychAttemptsFail": Case(
        *(attempts("worker_died", "0+1x30"), "20m", TRANSFORMER),
        "Workers of the role transformer die, fall silent, are sick or short of memory.",
        (attempts("given_up", "0+1x30"), attempts("worker_died", "0x10 2x20")),
    ),
    "TriptychQueueGrows": Case(
        *(waiting("10+2x60"), "45m", {}, "100 jobs wait, and they become more."),
        (waiting("100x60"), waiting("100-1x60"), waiting("0+0.2x60")),
    ),
    "TriptychWorkerQuarantined": Case(
        *(workers("quarantined", transformer="2x20"), "6m", TRANSFORMER),
        "Of the role transformer, 2 workers are in quarantine.",
        (workers("quarantined", transformer="0x20"), workers("quarantined", transformer="1x3 0x20")),
    ),
    "TriptychArenaFull": Case(
        *(workers("full", transformer="1x20"), "11m", TRANSFORMER),
        "Of the role transformer, 1 workers wait for space in their arenas.",
        (workers("full", transformer="1x5 0 1x9"),),
    ),
    "TriptychJournalFull": Case(
        {'triptych_journal_full_total{instance="a:1"}': "0x3 1x9"},
        *("5m", {"instance": "a:1"}, "The journal takes no changes."),
        ({'triptych_journal_full_total{instance="a:1"}': "4x20"},),
    ),
    "TriptychBackgroundFails": Case(
        {'triptych_background_failures_total{task="prune"}': "0+1x20"},
        *("12m", {"task": "prune"}, "The controller's task prune fails again and again."),
        ({'triptych_background_failures_total{task="prune"}': "0x5 2x20"},),
    ),
    "TriptychServerErrors": Case(
        {**calls("a/B", "OK", "0+54x30"), **calls("a/C", "INTERNAL", "0+6x30", "INTERNAL")},
        *("12m", {}, "10% of the calls end with a server's error."),
        (
            {**calls("a/B", "OK", "0+54x30"), **calls("_OTHER", "UNIMPLEMENTED", "0+60x30", "UNIMPLEMENTED")},
            {**calls("a/B", "OK", "0+54x30"), **calls("a/C", "NOT_FOUND", "0+60x30")},
        ),
    ),
    "TriptychChecksums": Case(
        {'triptych_checksum_failures_total{mover="mooncake"}': "0x3 1x20"},
        *("10m", {"mover": "mooncake"}, "Rooms came by mooncake with wrong bytes."),
        ({'triptych_checksum_failures_total{mover="mooncake"}': "1x20"},),
    ),
    "TriptychDeviceMemory": Case(
        *(device("98x20"), "11m", {"hw_id": "GPU-1"}, "The device GPU-1 has next to no memory left."),
        (device("90x20"),),
    ),
}


def test_each_alert_has_a_case() -> None:
    assert list(CASES) == [rule["alert"] for rule in rules()]


def at_once(series: Series, at: str, alert: str, expected: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": expected}],
    }


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_fires_for_what_it_is_for_only(rule: dict[str, Any], tmp_path: Path) -> None:
    alert = rule["alert"]
    case = CASES[alert]
    fires = {
        "exp_labels": {**rule["labels"], **case.labels},
        "exp_annotations": {**rule["annotations"], "summary": case.summary},
    }
    tests = [at_once(case.series, case.at, alert, [fires])]
    tests += [at_once(series, case.at, alert, []) for series in case.quiet]
    file = tmp_path / "tests.yml"
    file.write_text(json.dumps({"rule_files": [str(SHIPPED / "alerts.yml")], "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
