"""Settings: default < file < environment < command line, and every mistake is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from triptych.config import ControllerConfig, WorkerConfig, load
from triptych.errors import InvalidRequest


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text('mover = "rpc"\nthreads = 3\ndtype = "bfloat16"\n')
    argv = ["--config", str(file), "--threads", "7", "--model", "m"]
    config = load(WorkerConfig, argv, {"TRIPTYCH_MOVER": "local", "TRIPTYCH_THREADS": "5"})
    assert (config.dtype, config.mover, config.threads, config.model) == ("bfloat16", "local", 7, "m")
    assert config.device == WorkerConfig().device


@pytest.mark.parametrize(
    ("argv", "environ", "named"),
    [
        (["--threads", "two"], {}, "threads is 'two'; accepted: a value of type int"),
        (["--threads", "-1"], {}, "threads is '-1'; accepted: 0 or more"),
        ([], {"TRIPTYCH_MOVER": "pigeon"}, "mover is 'pigeon'; accepted: one of"),
        (["--dtype", "int8"], {}, "dtype is 'int8'; accepted: one of 'float32'"),
        (["--arena-bytes", "1"], {}, "arena_bytes is '1'; accepted: 65536 or more"),
    ],
)
def test_a_bad_value_is_named(argv: list[str], environ: dict[str, str], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load(WorkerConfig, argv, environ)
    assert named in str(caught.value)


def test_an_unknown_key_in_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "controller.toml"
    file.write_text("worker_timeout = 3\n")
    with pytest.raises(InvalidRequest, match=r"worker_timeout is 3; accepted: one of the keys .*worker_timeout_s"):
        load(ControllerConfig, ["--config", str(file)], {})


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("= = =")
    with pytest.raises(InvalidRequest, match="a readable TOML file"):
        load(ControllerConfig, ["--config", str(file)], {})


def test_nan_is_below_every_minimum() -> None:
    with pytest.raises(InvalidRequest):
        load(ControllerConfig, ["--worker-timeout-s", "nan"], {})


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--attempts-max", "300000"], "attempts_max is '300000'; accepted: 1 to 1000"),
        (["--keep-days", "inf"], "keep_days is 'inf'"),
        (["--work-max", "inf"], "work_max is 'inf'"),
        (["--worker-timeout-s", "inf"], "worker_timeout_s is 'inf'"),
        (
            ["--heartbeat-interval-s", "11"],
            "worker_timeout_s is 10.0; accepted: 22 or more: 2 times heartbeat_interval",
        ),
        (["--worker-timeout-s", "1"], "worker_timeout_s is 1.0; accepted: 2 or more"),
        (["--stall-timeout-s", "5"], "stall_timeout_s is 5.0; accepted: 10 or more: worker_timeout_s"),
        (["--client-bytes-max", "1000"], "client_bytes_max is 1000; accepted: 0, or "),
        (["--address", "0.0.0.0:7070", "--client-address", "0.0.0.0:7070"], "client_address is"),
        (["--lease-s", "0.5"], "lease_s is 0.5; accepted: 0, or 1 or more"),
        (
            ["--lease-s", "5", "--journal", "postgresql://db/x"],
            "result_url is ''; accepted: a URL that all controllers",
        ),
        (["--metrics-port", "70000"], "metrics_port is '70000'; accepted: 0 to 65535"),
    ],
)
def test_settings_are_held_against_each_other(argv: list[str], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load(ControllerConfig, argv, {})
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:opensesame@db/triptych",
        "postgresql://db/triptych?password=opensesame",
        "mysql://db/opensesame",
        "postgresql://[opensesame/x",
        "opensesame.db",
    ],
)
def test_a_journals_url_has_no_password_and_is_not_shown(url: str) -> None:
    """Anybody on a machine reads its command lines."""
    with pytest.raises(InvalidRequest, match="journal is 'something else'; accepted: postgresql://") as caught:
        load(ControllerConfig, ["--journal", url], {})
    assert "opensesame" not in str(caught.value)
    plain = "postgresql://me@db-1:5432,db-2:5432/triptych?sslmode=verify-full"
    assert load(ControllerConfig, ["--journal", plain], {}).journal == plain


def test_infinity_in_a_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "controller.toml"
    file.write_text("keep_jobs = inf\n")
    with pytest.raises(InvalidRequest, match="keep_jobs is inf"):
        load(ControllerConfig, ["--config", str(file)], {})


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("attempts_max = 3.0", "attempts_max is 3.0; accepted: a value of type int"),
        ("attempts_max = true", "attempts_max is True; accepted: a value of type int"),
        ('attempts_max = "3"', "attempts_max is '3'; accepted: a value of type int"),
        ("keep_days = false", "keep_days is False; accepted: a value of type float"),
        ("state = 3", "state is 3; accepted: a value of type str"),
    ],
)
def test_a_file_has_the_type_of_the_setting(line: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "controller.toml"
    file.write_text(line)
    with pytest.raises(InvalidRequest) as caught:
        load(ControllerConfig, ["--config", str(file)], {})
    assert str(caught.value) == f"{file}: {named}"
    file.write_text("keep_days = 3")
    assert load(ControllerConfig, ["--config", str(file)], {}).keep_days == 3.0


@pytest.mark.parametrize("cls", [ControllerConfig, WorkerConfig])
def test_every_number_has_both_bounds_and_a_default_within(cls: type) -> None:
    for f in dataclasses.fields(cls):
        if isinstance(f.default, int | float):
            assert f.metadata["minimum"] <= f.default <= f.metadata["maximum"], f.name
    cls().check()
