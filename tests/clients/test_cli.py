"""The `triptych` command as users meet it: a real process, a real server, exit codes and sentences."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.processes import free_port
from triptych_client.retry import RetryPolicy

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).with_name("toy_controller.py")
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "clients"))), "COLUMNS": "200"}
CLI = (sys.executable, "-m", "triptych_client.cli")
TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    command = (sys.executable, str(TOY), "--step-s", "0.02")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENV) as toy:
        assert toy.stdout is not None
        yield toy.stdout.readline().removeprefix("READY ").strip()
        toy.terminate()


def triptych(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (*CLI, *map(str, args)), capture_output=True, text=True, env=ENV, cwd=cwd, timeout=TIMEOUT_S, check=False
    )


def children_s() -> float:
    """CPU time that ended children have taken: on a busy machine the time of the wall says nothing of a program."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_quick_and_names_every_command() -> None:
    best_s = 10.0
    for _ in range(3):
        before_s = children_s()
        done = triptych("--help")
        best_s = min(best_s, children_s() - before_s)
    for command in ("up", "generate", "status", "jobs", "cancel", "download", "describe", "trace"):
        assert f"\n    {command} " in done.stdout
    assert best_s < 0.3


@pytest.mark.parametrize("suffix", ["mp4", "gif", "png", "npy"])
def test_the_suffix_chooses_the_format(endpoint: str, tmp_path: Path, suffix: str) -> None:
    done = triptych("generate", "a circle", "-o", tmp_path / f"out.{suffix}", "--endpoint", endpoint)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/out.{suffix}\n")
    assert "denoising" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [f"out.{suffix}"]


def test_several_outputs_and_every_request_flag(endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(b"picture")
    flags = "--height 64 --width 64 --num-frames 9 --num-inference-steps 3 --seed -1 --guidance-scale 2 --deadline-s 60"
    more = (
        "--param",
        "shift=3",
        "--media",
        f"image={tmp_path}/in.png",
        "--preview",
        "--transformer-rank",
        "7",
        "--priority",
        "low",
    )
    output = ("--num-outputs", "2", "-o", tmp_path / "out.mp4", "--endpoint", endpoint, "--quiet")
    done = triptych("generate", "a circle", *flags.split(), *more, *output)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{tmp_path}/out-0.mp4", f"{tmp_path}/out-1.mp4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out-0.mp4", "out-1.mp4"]


BAD_INPUT = [
    (("-o", "out.avi"), "output is 'out.avi'; accepted: a file name that ends in .mp4, .webm, .gif, .png, "),
    (("-o", "no/out.mp4"), "output is 'no/out.mp4'; accepted: a file in a folder that exists and can be written"),
    (("--height", "tall"), "argument --height: invalid int value: 'tall'"),
    (("--height", "1000000000000"), "height is 1000000000000; accepted: a whole number of 32 bits"),
    (("--param", "shift"), "param is 'shift'; accepted: NAME=JSON"),
    (("--param", "shift=three"), "param shift is 'three'; accepted: JSON"),
    (("--param", "shift=NaN"), "param shift is 'NaN'; accepted: JSON"),
    (("--media", "image=missing.png"), "media.image is 'missing.png'; accepted: a readable file"),
    (("--deadline-s", "nan"), "deadline-s is nan; accepted: a number of seconds"),
    (("--endpoint", "nowhere"), "endpoint is 'nowhere'; accepted: host:port"),
    (("--endpoint", "http://127.0.0.1:7070"), "endpoint is 'http://127.0.0.1:7070'; accepted: host:port without a"),
    (("--endpoint", "::1:7502"), "endpoint is '::1:7502'; accepted: host:port"),
    (("--endpoint", "127.0.0.1:99999"), "endpoint is '127.0.0.1:99999'; accepted: host:port"),
    (("--deadline-s", "1e12"), "deadline is '1e+12 s'; accepted: a time in the future, before the year 10000"),
    (("--model", ""), "model is ''; accepted: a folder that exists, or a hub id"),
    (("--model", "/no/such"), "model is '/no/such'; accepted: a folder that exists, or a hub id"),
]


@pytest.mark.parametrize(("flags", "sentence"), BAD_INPUT)
def test_bad_input_is_one_sentence_and_exit_code_2(flags: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    done = triptych("generate", "a circle", "-o", "out.mp4", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_the_server_refuses_is_exit_code_2(endpoint: str, tmp_path: Path) -> None:
    done = triptych("generate", "", "-o", tmp_path / "out.mp4", "--endpoint", endpoint)
    assert done.returncode == 2
    assert done.stderr == "triptych: prompt is ''; accepted: text that is not empty\n"


def test_a_failed_job_is_exit_code_1(endpoint: str, tmp_path: Path) -> None:
    done = triptych("generate", "fail", "-o", tmp_path / "out.mp4", "--endpoint", endpoint, "--quiet")
    assert done.returncode == 1
    assert done.stderr.endswith("failed: encoder: it was asked to fail\n")
    assert list(tmp_path.iterdir()) == []


def test_after_ctrl_c_a_running_fleets_job_goes_on(endpoint: str, tmp_path: Path) -> None:
    command = (*CLI, "generate", "forever", "-o", str(tmp_path / "out.mp4"), "--endpoint", endpoint)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENV) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "denoising" in line:
                break
        process.send_signal(signal.SIGINT)
        last = process.stderr.read().splitlines()[-1]
        assert process.wait(TIMEOUT_S) == 130
    job_id = last.split()[0]
    assert last == f"{job_id} goes on; see it with: triptych jobs {job_id} --endpoint {endpoint}"
    assert _state(endpoint, job_id) == "JOB_STATE_DENOISING"
    assert triptych("cancel", job_id, "--endpoint", endpoint).stdout == f"{job_id} cancelled\n"


def _state(endpoint: str, job_id: str) -> str:
    jobs = json.loads(triptych("jobs", "--json", "--endpoint", endpoint).stdout)
    return str({job["job_id"]: job["state"] for job in jobs}[job_id])


def test_jobs_are_listed_filtered_and_downloaded(endpoint: str, tmp_path: Path) -> None:
    assert triptych("generate", "a", "-o", tmp_path / "a.mp4", "--endpoint", endpoint).returncode == 0
    found = triptych("jobs", "--state", "succeeded", "--limit", "1", "--json", "--endpoint", endpoint)
    (job,) = json.loads(found.stdout)
    assert job["state"] == "JOB_STATE_SUCCEEDED"
    table = triptych("jobs", "--limit", "3", "--endpoint", endpoint).stdout
    assert job["job_id"] in table
    done = triptych("download", job["job_id"], "--endpoint", endpoint, cwd=tmp_path)
    assert done.stdout == f"{job['job_id']}.mp4\n"
    assert (tmp_path / done.stdout.strip()).read_bytes() == (tmp_path / "a.mp4").read_bytes()


def test_an_unknown_job_is_exit_code_1(endpoint: str) -> None:
    for command in ("cancel", "download"):
        done = triptych(command, "gone", "--endpoint", endpoint)
        assert (done.returncode, done.stderr) == (1, "triptych: no job gone\n")


def test_health_says_whether_a_service_serves(endpoint: str) -> None:
    done = triptych("health", "--endpoint", endpoint)
    assert (done.returncode, done.stdout) == (0, "SERVING\n")
    done = triptych("health", "--endpoint", endpoint, "--service", "painter")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"service is 'painter'; accepted: a service of {endpoint}" in done.stderr
    done = triptych("health", "--endpoint", f"127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (1, "")
    assert "doesn't answer within" in done.stderr


def test_status_and_describe_show_what_the_server_says(endpoint: str) -> None:
    shown = triptych("status", "--once", "--endpoint", endpoint).stdout
    for words in (f"fleet\t{endpoint}\tepoch 4\t", "rings\tphase1\t3\t", "workers\t7\ttransformer\tidle\t", "jobs\t"):
        assert words in shown
    assert json.loads(triptych("status", "--json", "--endpoint", endpoint).stdout)["workers"][0]["rank"] == 7
    shown = triptych("describe", "--endpoint", endpoint).stdout
    for words in ("ToyPipeline", "multiples of 8", "prompt", "What to make.", "ToyVae"):
        assert words in shown
    assert "latents" not in shown
    assert json.loads(triptych("describe", "--json", "--endpoint", endpoint).stdout)["size_multiple"] == 8


def test_up_says_when_its_port_is_taken(endpoint: str, tmp_path: Path) -> None:
    done = triptych("up", "--model", "some/model", "--endpoint", endpoint, "--state", tmp_path)
    assert done.returncode == 2
    assert f"controller: address is '{endpoint}'; accepted: a free port" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_ray_it_is_said_what_to_install(tmp_path: Path) -> None:
    script = "import sys; sys.modules['ray'] = None; from triptych_client.cli import main; sys.exit(main())"
    command = (sys.executable, "-c", script, "up", "--on", "ray", "--model", str(tmp_path), "--state", str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "a fleet on a Ray cluster needs the package 'ray': pip install 'triptych[ray]'" in done.stderr


def test_dead_letters_are_listed_shown_and_retried(endpoint: str, tmp_path: Path) -> None:
    assert triptych("generate", "dead", "-o", tmp_path / "out.mp4", "--endpoint", endpoint).returncode == 1
    listed = triptych("jobs", "--dead", "--endpoint", endpoint)
    assert listed.returncode == 0
    assert "transformer 3: rank 3 was silent" in listed.stdout
    assert "transformer 5: rank 5 was silent" in listed.stdout
    (dead,) = json.loads(triptych("jobs", "--dead", "--json", "--endpoint", endpoint).stdout)
    shown = triptych("jobs", "--dead", dead["job_id"], "--endpoint", endpoint)
    assert "gave up after 2 attempts" in shown.stdout
    assert all(f"attempts\ttransformer\t{rank}\t" in shown.stdout for rank in (3, 5))
    retried = triptych("jobs", "--dead", "--retry", "all", "--endpoint", endpoint)
    assert retried.stdout.split()[0] == dead["job_id"]
    assert triptych("jobs", "--dead", "--retry", dead["job_id"], "--endpoint", endpoint).stdout == retried.stdout


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--retry", "all"), "retry is 'all'; accepted: nothing without --dead"),
        (("--dead", "--retry"), "retry is ''; accepted: ids of dead letters, or 'all'"),
        (("--dead", "--state", "queued"), "state is 'queued'; accepted: nothing with --dead"),
    ],
)
def test_bad_flags_of_jobs(endpoint: str, flags: tuple[str, ...], sentence: str) -> None:
    done = triptych("jobs", *flags, "--endpoint", endpoint)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("flag", "field"), [("--endpoint", "endpoint"), ("--client-endpoint", "client_endpoint")], ids=lambda it: it
)
def test_up_names_the_flag_whose_address_is_none(flag: str, field: str, tmp_path: Path) -> None:
    """Before any process starts: a port that is none would become another."""
    done = triptych("up", "--model", tmp_path, flag, "127.0.0.1:99999", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"triptych: {field} is '127.0.0.1:99999'; accepted: host:port without a scheme")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        *(
            ("status", "--once"),
            ("jobs",),
            ("describe",),
            ("cancel", "job-0"),
            ("watch", "job-0"),
            ("download", "job-0"),
        ),
        ("generate", "a cat", "-o", "cat.mp4"),
    ],
)
def test_without_a_fleet_it_is_said_how_to_start_one(command: tuple[str, ...], tmp_path: Path) -> None:
    """Within seconds, though a client that has a job waits a minute for a controller that is gone."""
    nobody = f"127.0.0.1:{free_port()}"
    start_s = time.monotonic()
    done = triptych(*command, "--endpoint", nobody, cwd=tmp_path)
    assert time.monotonic() - start_s < RetryPolicy().absent_s_max / 2
    assert done.returncode == 1
    sentence = (
        f"no answer from {nobody} (connection refused); `triptych up` starts a fleet, --endpoint says where one is"
    )
    assert done.stderr == f"triptych: {sentence}\n"


def test_tokens_that_were_cut_off_are_told(endpoint: str, tmp_path: Path) -> None:
    done = triptych("generate", "wordy", "-o", "out.mp4", "--endpoint", endpoint, cwd=tmp_path)
    assert done.returncode == 0
    *_, told, closing = done.stderr.splitlines()
    assert told == "prompt: tokenizer_2 cut off the last 3 tokens"
    assert closing.startswith("job ")
    quiet = triptych("generate", "wordy", "-o", "out.mp4", "--endpoint", endpoint, "--quiet", cwd=tmp_path)
    assert (quiet.returncode, quiet.stderr) == (0, "")
