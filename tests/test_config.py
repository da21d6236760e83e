"""Settings: default < file < environment < command line, and every mistake is named."""

from __future__ import annotations

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
