"""Writes Grafana's dashboards, `grafana/dashboards/*.json`, from the tables below: `python dashboards.py`.

A panel is its title, the unit of its values (Grafana's names), and its queries, each with the legend of its lines.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
COLUMNS = 3
WIDTH = 24 // COLUMNS
HEIGHT = 8
PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}
WAITING = "triptych.v1.(RingService/Claim|FleetService/Heartbeat|GenerationService/WatchJob|EncoderService/Generate)"
"""Calls that wait, or last as long as a job or a worker: their times say nothing of a server."""


class Panel(NamedTuple):
    """One graph."""

    title: str
    unit: str
    queries: Mapping[str, str]
    """Expressions by legend."""


def rate(counter: str, *by: str, where: str = "") -> str:
    """Events a second, or the share of time of a counter of seconds."""
    labels = f"{{{where}}}" if where else ""
    grouped = f"sum by ({', '.join(by)})" if by else "sum"
    return f"{grouped} (rate({counter}{labels}[$__rate_interval]))"


def quantile(share: float, histogram: str, *by: str, where: str = "") -> str:
    """The value below which this share of a histogram's values is."""
    return f"histogram_quantile({share}, {rate(histogram + '_bucket', 'le', *by, where=where)})"


def named(expression: str) -> str:
    """An expression by process, with what the process says of itself."""
    return f"({expression}) * on (job, instance) group_left (service_name, service_instance_id) target_info"


PROCESS = "{{service_name}} {{service_instance_id}}"
"""The legend of a process: its service, its rank and the controller's epoch."""
FAILED = 'outcome=~"failed|dead_letter|expired"'
ENDED = rate("triptych_jobs_ended_total", where='outcome!="cancelled"')
FLEET: dict[str, list[Panel]] = {
    "Jobs": [
        Panel(
            *("Jobs a second", "ops"),
            {
                "accepted": rate("triptych_jobs_accepted_total"),
                "{{outcome}}": rate("triptych_jobs_ended_total", "outcome"),
            },
        ),
        Panel(
            *("Share of jobs without a result", "percentunit"),
            {"without": f"{rate('triptych_jobs_ended_total', where=FAILED)} / {ENDED}"},
        ),
        Panel(
            *("Time from acceptance to result", "s"),
            {
                "half of them": quantile(0.5, "triptych_job_duration_seconds", where='outcome="succeeded"'),
                "95 %": quantile(0.95, "triptych_job_duration_seconds", where='outcome="succeeded"'),
            },
        ),
    ],
    "Stages": [
        Panel("Runs a second", "ops", {"{{stage}}": rate("triptych_stage_run_seconds_count", "stage")}),
        Panel(
            *("Run time", "s"),
            {
                "{{stage}}, half of them": quantile(0.5, "triptych_stage_run_seconds", "stage"),
                "{{stage}}, 95 %": quantile(0.95, "triptych_stage_run_seconds", "stage"),
            },
        ),
        Panel(
            *("Attempts that ended badly", "ops"),
            {"{{role}}: {{kind}}": rate("triptych_attempts_failed_total", "role", "kind")},
        ),
    ],
    "Queues": [
        Panel(*("Jobs that aren't over", "short"), {"{{state}}": "sum by (state) (triptych_jobs_unfinished)"}),
        Panel(
            *("Dispatches in the rings", "short"),
            {
                "{{ring}}, waiting": "sum by (ring) (queue_sizes)",
                "{{ring}}, with a worker": "sum by (ring) (queue_in_flight)",
                "waiting in all": "sum(queue_total_pending)",
            },
        ),
        Panel(
            *("Wait in the rings", "s"),
            {
                "{{stage}}, half of them": quantile(0.5, "triptych_queue_wait_seconds", "stage"),
                "{{stage}}, 95 %": quantile(0.95, "triptych_queue_wait_seconds", "stage"),
            },
        ),
    ],
    "Workers": [
        Panel(*("Workers", "short"), {"{{role}}, {{state}}": "sum by (role, state) (triptych_workers) > 0"}),
        Panel(
            *("Share of time with a job in hand", "percentunit"),
            {"{{role}}": "avg by (role) (rate(triptych_worker_busy_seconds_total[$__rate_interval]))"},
        ),
        Panel(
            *("Arenas in use", "percentunit"),
            {PROCESS: named("triptych_arena_used_bytes / triptych_arena_size_bytes")},
        ),
        Panel("Redeliveries", "ops", {"{{ring}}": rate("triptych_redeliveries_total", "ring")}),
        Panel("Dead letters", "ops", {"{{stage}}": rate("triptych_dead_letters_total", "stage")}),
        Panel(
            *("Quarantine", "short"),
            {
                "{{role}}, now": 'sum by (role) (triptych_workers{state="quarantined"})',
                "{{stage}}, begun in the last hour": "sum by (stage) (increase(triptych_quarantines_total[1h]))",
            },
        ),
    ],
    "Movers": [
        Panel("Bytes of rooms", "Bps", {"{{mover}}": rate("triptych_transfer_bytes_total", "mover")}),
        Panel("Time to fetch a room, 95 %", "s", {"{{mover}}": quantile(0.95, "triptych_transfer_seconds", "mover")}),
        Panel("Rooms with wrong bytes", "ops", {"{{mover}}": rate("triptych_checksum_failures_total", "mover")}),
    ],
    "Text encoders in processes of their own": [
        Panel("Calls a second", "ops", {"{{source}}": rate("triptych_text_encoder_answers_total", "source")}),
        Panel(
            *("Runs", "s"),
            {
                "median": quantile(0.5, "triptych_text_encoder_run_seconds"),
                "95 %": quantile(0.95, "triptych_text_encoder_run_seconds"),
            },
        ),
        Panel(
            "Calls a second that ran as one with others",
            "ops",
            {"together": rate("triptych_text_encoder_batched_total")},
        ),
        Panel("Answers kept", "bytes", {PROCESS: named("triptych_text_encoder_kept_bytes")}),
    ],
    "Devices": [
        Panel(
            *("Memory of devices", "bytes"),
            {
                "{{hw_name}} {{hw_id}}, in use": "max by (hw_id, hw_name) (hw_gpu_memory_usage_bytes)",
                "{{hw_name}} {{hw_id}}, there is": "max by (hw_id, hw_name) (hw_gpu_memory_limit_bytes)",
            },
        ),
        Panel("Memory that stages have taken", "bytes", {PROCESS: named("triptych_device_memory_bytes")}),
        Panel(
            *("Share of time that devices compute", "percentunit"),
            {"{{hw_name}} {{hw_id}}": "max by (hw_id, hw_name) (hw_gpu_utilization)"},
        ),
    ],
}
PROCESSES: dict[str, list[Panel]] = {
    "Calls": [
        Panel(
            "Calls a second", "ops", {"{{rpc_method}}": rate("rpc_server_call_duration_seconds_count", "rpc_method")}
        ),
        Panel(
            *("Calls that didn't end with OK", "ops"),
            {
                "{{rpc_method}}: {{rpc_response_status_code}}": rate(
                    *("rpc_server_call_duration_seconds_count", "rpc_method", "rpc_response_status_code"),
                    where='rpc_response_status_code!="OK"',
                )
            },
        ),
        Panel(
            *("Time of calls that don't wait, 99 %", "s"),
            {
                "{{rpc_method}}": quantile(
                    *(0.99, "rpc_server_call_duration_seconds", "rpc_method"), where=f'rpc_method!~"{WAITING}"'
                )
            },
        ),
    ],
    "Processes": [
        Panel("CPU", "percentunit", {PROCESS: named(rate("process_cpu_time_seconds_total", "job", "instance"))}),
        Panel("Resident memory", "bytes", {PROCESS: named("process_memory_usage_bytes")}),
        Panel("Longest hold of the event loop", "s", {PROCESS: named("triptych_event_loop_hold_seconds")}),
        Panel("Open files", "short", {PROCESS: named("process_unix_file_descriptor_count")}),
        Panel("Threads", "short", {PROCESS: named("process_thread_count")}),
        Panel("Time since the start", "s", {PROCESS: named("process_uptime_seconds")}),
    ],
    "Upkeep": [
        Panel("Rounds that failed", "ops", {"{{task}}": rate("triptych_background_failures_total", "task")}),
        Panel("What nobody knew of", "ops", {"{{what}}": rate("triptych_reconciliations_total", "what")}),
        Panel("Writes that the journal refused", "ops", {"refused": rate("triptych_journal_full_total")}),
    ],
}
DASHBOARDS = {"fleet": ("Triptych: fleet", FLEET), "processes": ("Triptych: processes", PROCESSES)}


def render(name: str) -> str:
    """A dashboard as Grafana reads it."""
    title, rows = DASHBOARDS[name]
    panels: list[dict[str, Any]] = []
    top = 0
    for row, its_panels in rows.items():
        place = {"x": 0, "y": top, "w": 24, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": row, "gridPos": place, "panels": []})
        top += 1
        for index, panel in enumerate(its_panels):
            line, column = divmod(index, COLUMNS)
            place = {"x": column * WIDTH, "y": top + line * HEIGHT, "w": WIDTH, "h": HEIGHT}
            panels.append({"id": len(panels) + 1, "gridPos": place, **_graph(panel)})
        top += -(-len(its_panels) // COLUMNS) * HEIGHT
    dashboard = {
        "uid": f"triptych-{name}",
        "title": title,
        "tags": ["triptych"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "panels": panels,
    }
    return json.dumps(dashboard, indent=1) + "\n"


def _graph(panel: Panel) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": PROMETHEUS,
            "expr": expression,
            "legendFormat": legend,
            "exemplar": "_bucket" in expression,
        }
        for number, (legend, expression) in enumerate(panel.queries.items())
    ]
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": PROMETHEUS,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in DASHBOARDS:
        (FOLDER / f"{name}.json").write_text(render(name))
