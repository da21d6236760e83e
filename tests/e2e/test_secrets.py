"""What callers write reaches the model, the journal's copy of the request and the caller; no log, span or record."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import SMALL, ended
from tests.fleet.processes import Fleet
from triptych import telemetry
from triptych.errors import TriptychError
from triptych.v1.job_pb2 import JOB_STATE_FAILED, JOB_STATE_SUCCEEDED, Job
from triptych_client import Client

MARKER = "zebracrossing"
PROMPT = f"a {MARKER} in the rain, it's 'wet'\nand \"dark\" " + "x" * 200
FIELDS: dict[str, Any] = {**SMALL, "num_frames": 5, "negative_prompt": f"no {MARKER}"}


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], str]) -> Iterator[Fleet]:
    """A fleet of its own, whose processes all append to one trace file."""
    folder = tmp_path_factory.mktemp("secrets")
    flags = ("--trace-file", str(folder / "trace.jsonl"))
    with Fleet(folder / "fleet", model_folder("wan_t2v"), worker_flags=flags, controller_flags=flags) as fleet:
        yield fleet


def trace_file(fleet: Fleet) -> Path:
    return fleet.folder.parent / "trace.jsonl"


def outcome(client: Client, **fields: Any) -> Job:
    """A job once it is over."""
    return ended(client, client.create_job(PROMPT, **{**FIELDS, **fields}).job_id)


REFUSED: list[dict[str, Any]] = [
    {"parameters": {f"{MARKER}_scale": MARKER}},
    {"parameters": {"sigmas": MARKER}},
    {"parameters": {"attention_kwargs": [MARKER]}},
    {"parameters": {"latents": MARKER}},
    {"parameters": {"output_type": MARKER}},
    {"output_format": MARKER},
    {"parameters": {"max_sequence_length": -1}},
    {"height": 33},
    {"negative_prompt": MARKER * 6000},
]
"""What the controller refuses, naming field and value to the caller."""

FAILING: list[dict[str, Any]] = [
    {"parameters": {"sigmas": [MARKER]}},
    {"parameters": {"sigmas": []}},
    {"parameters": {"attention_kwargs": {"scale": MARKER, MARKER: MARKER}}},
    {"parameters": {"attention_kwargs": {MARKER: 1.0}}},
    {"parameters": {"sigmas": [0.5, -1e308, 1e308]}},
]
"""What only a stage can find out."""


def everything_written(fleet: Fleet) -> dict[str, str]:
    """All that a fleet has written down, but for the requests themselves."""
    texts = {name: fleet.log(name) for name in fleet.processes}
    texts["trace file"] = trace_file(fleet).read_text()
    with sqlite3.connect(f"file:{fleet.folder / 'state' / 'journal.db'}?mode=ro", uri=True) as db:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            for column in columns:
                if (table, column) != ("requests", "request"):
                    texts[f"{table}.{column}"] = repr(db.execute(f"SELECT {column} FROM {table}").fetchall())
    return texts


def test_the_journal_is_where_it_is_looked_for(traced: Fleet) -> None:
    """And the one column that held the prompt is empty when its job is over; `test_keeping.py` sees it before."""
    with traced.client() as client:
        assert outcome(client).state == JOB_STATE_SUCCEEDED
    (file,) = (traced.folder / "state").glob("*.db")
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as db:
        assert db.execute("SELECT COUNT(*) FROM jobs").fetchone()[0] > 0
        assert db.execute("SELECT COUNT(*) FROM requests").fetchone() == (0,)


def test_nothing_that_a_caller_wrote_is_written_down(traced: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[str] = []
    with telemetry.setup("triptych-client", trace_file=str(trace_file(traced))), traced.client() as client:
        for fields in REFUSED:
            with pytest.raises(TriptychError) as refused:
                client.create_job(PROMPT, **{**FIELDS, **fields})
            assert str(refused.value)
        ends = {json.dumps(fields)[:60]: outcome(client, **fields) for fields in FAILING}
        records += [str(job) for job in ends.values()]
        failed = [name for name, job in ends.items() if job.state == JOB_STATE_FAILED]
        assert len(failed) > len(FAILING) // 2, {name: job.state for name, job in ends.items()}
        records.append(str(client.list_jobs()))
    texts = everything_written(traced) | {"job records": "\n".join(records)}
    assert len(texts["trace file"]) > 1000
    assert "CreateJob" in texts["trace file"]
    hidden = (MARKER, base64.b64encode(MARKER.encode())[:-4].decode())
    found = {
        where: text[max(0, text.find(word) - 300) : text.find(word) + 100]
        for where, text in texts.items()
        for word in hidden
        if word in text
    }
    assert found == {}
