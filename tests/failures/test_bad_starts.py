"""A process that can't do what it was started for says why in one sentence and exits with 2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fleet.processes import Fleet, wait_until

EXIT_TIMEOUT_S = 200.0


class Start:
    """A process that is expected to end by itself."""

    def __init__(self, service: str, *flags: str) -> None:
        command = [sys.executable, "-m", f"services.{service}", *flags]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env)

    def sentence(self) -> str:
        """Its one sentence, once it has ended with 2. Log lines (JSON and Mooncake's own) aside, there is no other."""
        out, err = self.process.communicate(timeout=EXIT_TIMEOUT_S)
        assert (self.process.returncode, out) == (2, ""), err
        assert "Traceback" not in err
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        return line.removeprefix("error: ")


@pytest.fixture
def start() -> Iterator[Callable[..., Start]]:
    """Starts processes; those that are still there at the end are killed."""
    started: list[Start] = []

    def start_one(service: str, *flags: str) -> Start:
        started.append(Start(service, *flags))
        return started[-1]

    yield start_one
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


def test_models_that_cannot_be_loaded(
    start: Callable[..., Start], wan_fleet: Fleet, model_folder: Callable[[str], str], tmp_path: Path
) -> None:
    """All at once, because most of a start is importing torch."""
    missing, foreign, truncated, gone = (tmp_path / name for name in ("missing", "foreign", "truncated", "gone"))
    foreign.mkdir()
    (foreign / "README.md").write_text("no model")
    for copy in (truncated, gone):
        shutil.copytree(wan_fleet.model, copy)
    (weights,) = (truncated / "text_encoder").glob("*.safetensors")
    size_bytes = weights.stat().st_size
    os.truncate(weights, size_bytes - 1000)
    shutil.rmtree(gone / "vae")
    changed = Path(shutil.copytree(wan_fleet.model, tmp_path / "changed"))
    (tensors,) = (changed / "transformer").glob("*.safetensors")
    with tensors.open("r+b") as file:
        file.seek(tensors.stat().st_size // 2)
        file.write(b"\x3f")
    expected = {
        ("encoder", str(missing)): [f"'{missing}' does not exist"],
        ("encoder", str(foreign)): [f"'{foreign}' is not a diffusers model", "model_index.json"],
        ("encoder", str(truncated)): [f"{weights} is truncated: {size_bytes - 1000} bytes instead of {size_bytes}"],
        ("decoder", str(gone)): [str(gone / "vae")],
        ("decoder", ""): ["model is ''; accepted: a folder or hub id of a diffusers pipeline"],
        ("transformer", str(changed)): ["this fleet serves", wan_fleet.model, "the worker has", str(changed)],
        ("decoder", model_folder("sd3")): ["this fleet serves", wan_fleet.model, "the worker has", "sd3"],
    }
    started = {
        (service, model): start(service, "--model", model, "--controller", wan_fleet.endpoint)
        for service, model in expected
    }
    for key, words in expected.items():
        sentence = started[key].sentence()
        assert [word for word in words if word not in sentence] == [], sentence
    with wan_fleet.client() as client:
        wait_until(lambda: len(client.get_fleet().workers) == 3, 60, "the fleet is as it was")


def test_a_port_that_is_taken(start: Callable[..., Start], wan_fleet: Fleet, tmp_path: Path) -> None:
    taken = wan_fleet.endpoint
    controller = start("controller", "--address", taken, "--state", str(tmp_path / "state"))
    worker = start("decoder", "--address", taken, "--model", wan_fleet.model, "--controller", taken)
    wrong = start("controller", "--address", "nowhere", "--state", str(tmp_path / "other"))
    accepted = "accepted: a free port on an address of this machine"
    assert controller.sentence() == f"address is '{taken}'; {accepted}"
    assert worker.sentence() == f"address is '{taken}'; {accepted}"
    assert wrong.sentence().startswith("address is 'nowhere'; accepted: host:port")


def test_a_state_folder_that_is_in_use_or_unusable(
    start: Callable[..., Start], wan_fleet: Fleet, tmp_path: Path
) -> None:
    used, file, broken = wan_fleet.folder / "state", tmp_path / "file", tmp_path / "broken"
    file.write_text("")
    broken.mkdir()
    (broken / "journal.db").write_text("no database, but long enough to be taken for one" * 100)
    second, on_file, on_broken = (
        start("controller", "--address", "127.0.0.1:0", "--state", str(state)) for state in (used, file, broken)
    )
    assert second.sentence() == f"state is '{used}'; accepted: a folder that no other controller uses"
    assert on_file.sentence().startswith(f"state is '{file}'; accepted: a folder that can be written")
    assert on_broken.sentence().startswith(f"state is '{broken}'; accepted: a journal that SQLite can read")


def test_bad_settings(start: Callable[..., Start], tmp_path: Path) -> None:
    unknown, broken = tmp_path / "unknown.toml", tmp_path / "broken.toml"
    unknown.write_text('adress = "127.0.0.1:0"\n')
    broken.write_text("= 1\n")
    state = ("--state", str(tmp_path / "state"), "--address", "127.0.0.1:0")
    expected = [
        (
            start("controller", *state, "--config", str(unknown)),
            f"{unknown}: adress is '127.0.0.1:0'; accepted: one of",
        ),
        (start("controller", *state, "--config", str(broken)), f"config is '{broken}'; accepted: a readable TOML file"),
        (start("controller", *state, "--attempts-max", "0"), "attempts_max is '0'; accepted: 1 or more"),
        (
            start("controller", *state, "--attempts-max", "many"),
            "attempts_max is 'many'; accepted: a value of type int",
        ),
        (start("controller", *state, "--worker-timeout-s", "nan"), "worker_timeout_s is 'nan'; accepted: 0.2 or more"),
        (
            start("controller", "--state", str(tmp_path / "other"), "--result-url", "nothing://x"),
            "result_url is 'nothing://x'; accepted: an fsspec",
        ),
    ]
    flag = start("controller", *state, "--adress", "127.0.0.1:0")
    for one, sentence in expected:
        assert one.sentence().startswith(sentence)
    out, err = flag.process.communicate(timeout=EXIT_TIMEOUT_S)
    assert (flag.process.returncode, out) == (2, "")
    assert err.splitlines()[-1].endswith("error: unrecognized arguments: --adress 127.0.0.1:0")
    assert not (tmp_path / "state").exists(), "nothing half-done"
