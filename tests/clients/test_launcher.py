"""The supervisor with real child processes: ready, restart, back-off, drain, and never an orphan."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import Field
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from tests.clients.conftest import QUICK
from tests.fleet.processes import eventually
from triptych.config import ControllerConfig, WorkerConfig, load
from triptych.errors import InvalidRequest, Unavailable
from triptych_client import AsyncClient, FleetPlan, RolePlan
from triptych_client.fleet_plan import (
    CONTROLLER_SETTINGS,
    SETTING_BY_NAME,
    STOP_MARGIN_S,
    TEXT_ENCODER_SETTINGS,
    WORKER_SETTINGS,
)
from triptych_client.launcher import RestartPolicy, Supervisor
from triptych_client.processes import ProcessSpec, last_message, last_words

TOY = Path(__file__).with_name("toy_controller.py")
ROOT = TOY.parents[2]
PYTHONPATH = os.pathsep.join((str(ROOT), str(ROOT / "clients")))
READY_S = 100.0
CONTROLLER_ONLY = {f.name for f in CONTROLLER_SETTINGS}
WORKER_ONLY = {f.name for f in WORKER_SETTINGS}
POLICY = RestartPolicy(delay_s_initial=0.1, delay_s_max=0.4, starts_max=2)


def script(name: str, code: str, **env: str) -> ProcessSpec:
    return ProcessSpec(name, (sys.executable, "-c", code), env)


@pytest.fixture
async def notices() -> list[str]:
    return []


@pytest.fixture
async def supervisor(tmp_path: Path, notices: list[str]) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(tmp_path / "logs", POLICY, notices.append)
    yield supervisor
    await supervisor.kill()


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_killed_process_comes_back_on_its_address(supervisor: Supervisor) -> None:
    argv = (sys.executable, str(TOY), "--address", "127.0.0.1:0")
    supervisor.start(ProcessSpec("controller", argv, {"PYTHONPATH": PYTHONPATH}, keeps_address=True))
    address = await supervisor.ready("controller", READY_S)
    async with AsyncClient(address, QUICK) as client:
        assert (await client.get_fleet()).epoch == 4
        before = supervisor.pids["controller"]
        os.kill(before, signal.SIGKILL)
        await eventually(lambda: supervisor.pids.get("controller", before) != before, READY_S)
        assert (await client.get_fleet()).epoch == 4


async def test_the_environment_is_added_to(supervisor: Supervisor) -> None:
    code = (
        "import os; print('READY', os.environ['GREETING'] + ':1' if 'PATH' in os.environ else '', flush=True); input()"
    )
    supervisor.start(script("child", code, GREETING="a=b,c"))
    assert await supervisor.ready("child", READY_S) == "a=b,c:1"


async def test_waits_between_starts_grow(supervisor: Supervisor, notices: list[str]) -> None:
    supervisor.start(script("child", "import sys; print('READY x:1', flush=True); sys.exit(1)"))
    await eventually(lambda: sum("starts again" in notice for notice in notices) >= 4, READY_S)
    delays = [notice.rpartition(" in ")[2] for notice in notices if "starts again" in notice][:4]
    assert delays == ["0.1 s", "0.2 s", "0.4 s", "0.4 s"]


async def test_a_process_that_was_ready_long_enough_starts_again_quickly(tmp_path: Path, notices: list[str]) -> None:
    policy = RestartPolicy(delay_s_initial=0.05, delay_s_max=10, stable_s=0.0)
    supervisor = Supervisor(tmp_path, policy, notices.append)
    supervisor.start(script("child", "import sys; print('READY x:1', flush=True); sys.exit(1)"))
    await eventually(lambda: sum("starts again" in notice for notice in notices) >= 4, READY_S)
    await supervisor.kill()
    assert all("in 0.05 s" in notice for notice in notices if "starts again" in notice)


async def test_bad_configuration_is_not_tried_again(supervisor: Supervisor, notices: list[str]) -> None:
    code = (
        "import sys; print('{\"log\": 1}', 'error: model is 3; accepted: 4', sep='\\n', file=sys.stderr); sys.exit(2)"
    )
    supervisor.start(script("encoder-0", code))
    with pytest.raises(InvalidRequest, match=r"^encoder-0: model is 3; accepted: 4$"):
        await supervisor.ready("encoder-0", READY_S)
    with pytest.raises(InvalidRequest):
        await supervisor.wait()
    assert notices == []


async def test_a_process_that_never_gets_ready_is_given_up(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(script("encoder-0", "raise RuntimeError('no luck')"))
    with pytest.raises(Unavailable, match=r"encoder-0 can't start \(exit code 1\): RuntimeError: no luck; its log is"):
        await supervisor.ready("encoder-0", READY_S)
    assert (tmp_path / "logs" / "encoder-0.log").read_text().count("Traceback") == POLICY.starts_max


async def test_a_process_that_is_never_ready_has_a_bound(supervisor: Supervisor) -> None:
    supervisor.start(script("child", "import signal; signal.pause()"))
    with pytest.raises(Unavailable, match=r"not ready after 0\.2 s"):
        await supervisor.ready("child", 0.2)


async def test_a_draining_process_may_finish(supervisor: Supervisor, tmp_path: Path) -> None:
    code = f"""
import signal, sys, time
def finish(*_):
    time.sleep(0.3)
    open({str(tmp_path / "finished")!r}, "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, finish)
print("READY x:1", flush=True)
signal.pause()
"""
    supervisor.start(script("child", code))
    await supervisor.ready("child", READY_S)
    await supervisor.stop(["child"], READY_S)
    assert (tmp_path / "finished").exists()
    assert supervisor.pids == {}


async def test_a_process_that_does_not_drain_is_killed(supervisor: Supervisor, notices: list[str]) -> None:
    code = (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('READY x:1', flush=True)\n"
        "while True: signal.pause()"
    )
    supervisor.start(script("child", code))
    await supervisor.ready("child", READY_S)
    pid = supervisor.pids["child"]
    await supervisor.stop(["child"], 0.2)
    assert not is_alive(pid)
    assert "child has not ended after 0.2 s and is killed" in notices


async def test_a_process_between_two_starts_can_be_stopped(tmp_path: Path, notices: list[str]) -> None:
    supervisor = Supervisor(tmp_path, RestartPolicy(delay_s_initial=60), notices.append)
    supervisor.start(script("child", "print('READY x:1', flush=True)"))
    await eventually(lambda: any("starts again" in notice for notice in notices), READY_S)
    async with asyncio.timeout(30):
        await supervisor.stop(["child"], READY_S)


async def test_nothing_outlives_a_killed_launcher(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from triptych_client.launcher import Supervisor
from triptych_client.processes import ProcessSpec
child = (sys.executable, "-c", "import signal; print('READY x:1', flush=True); signal.pause()")
async def main():
    supervisor = Supervisor(Path({str(tmp_path)!r}))
    for name in ("one", "two"):
        supervisor.start(ProcessSpec(name, child))
        await supervisor.ready(name, {READY_S})
    print(*supervisor.pids.values(), flush=True)
    await supervisor.wait()
asyncio.run(main())
"""
    env = {**os.environ, "PYTHONPATH": PYTHONPATH}
    launcher = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE, env=env)
    assert launcher.stdout is not None
    pids = [int(pid) for pid in (await launcher.stdout.readline()).split()]
    assert len(pids) == 2
    assert all(is_alive(pid) for pid in pids)
    launcher.kill()
    await launcher.wait()
    await eventually(lambda: not any(is_alive(pid) for pid in pids), READY_S)


def test_last_words_are_the_error_or_the_last_line_that_is_no_record(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    log.write_text("")
    assert last_words(log) == ""
    log.write_text('{"a": 1}\nerror: one\n{"a": 2}\nRuntimeError: at exit\n\n')
    assert last_words(log) == "one"
    assert last_words(log, offset=len('{"a": 1}\nerror: one\n')) == "RuntimeError: at exit"
    log.write_text("x" * 10**6 + "\nerror: at the end of a long log\n")
    assert last_words(log) == "at the end of a long log"


def test_a_plan_names_each_process_and_its_settings(tmp_path: Path) -> None:
    plan = FleetPlan(
        model="a/b",
        state=tmp_path,
        roles={"encoder": RolePlan(), "transformer": RolePlan(2, "cuda:1", "bfloat16"), "decoder": RolePlan()},
        threads=3,
        metrics_port=9000,
    )
    specs = plan.workers("127.0.0.1:7")
    assert [spec.name for spec in specs] == ["encoder-0", "transformer-0", "transformer-1", "decoder-0"]
    line = " ".join(specs[2].argv)
    for part in ("services.transformer", "--device cuda:1", "--dtype bfloat16", "--threads 3", "--metrics-port 9003"):
        assert part in line
    assert "--mover" not in line


def test_a_drain_begins_when_balancers_have_seen_it(tmp_path: Path) -> None:
    """Each process has its lame duck, the workers share what is left of the drain timeout."""
    roles = {"encoder": RolePlan(), "transformer": RolePlan(2), "decoder": RolePlan()}
    plan = FleetPlan("a/b", tmp_path, roles, lame_duck_s=300, drain_timeout_s=600)
    groups, bounds_s = zip(*plan.drains(), strict=True)
    assert list(groups) == [["encoder-0"], ["transformer-0", "transformer-1"], ["decoder-0"], ["controller"]]
    workers_s = 300 + 600 + STOP_MARGIN_S
    assert bounds_s == (*[pytest.approx(workers_s, abs=60)] * 3, 300 + STOP_MARGIN_S)
    assert list(bounds_s[:3]) == sorted(bounds_s[:3], reverse=True)
    spent = FleetPlan("a/b", tmp_path, roles, lame_duck_s=300, drain_timeout_s=0)
    assert all(bound_s >= 300 for _names, bound_s in spent.drains())


UNLIKE = {
    "journal": "postgresql:///x",
    "text_encoder_engine": "process:127.0.0.1:7",
    "devices": "cpu,cpu",
    "means": '{"process": {"numa_node": 0}}',
}
"""Values of settings that are checked texts."""
TOGETHER = {"parallel": {"devices": "cpu,cpu"}, "devices": {"parallel": "cfg"}}
"""What a setting is given with."""
TEXT_ENCODER_ONLY = {f.name for f in TEXT_ENCODER_SETTINGS}
NOT_THE_CONTROLLERS = WORKER_ONLY | TEXT_ENCODER_ONLY
NOT_THE_WORKERS = CONTROLLER_ONLY | TEXT_ENCODER_ONLY


def another(setting: Field[Any]) -> object:
    """An accepted value that isn't the default."""
    known = setting.metadata
    if known.get("among"):
        return known["among"][-1]
    if isinstance(setting.default, str):
        if setting.name in UNLIKE:
            return UNLIKE[setting.name]
        return "127.0.0.1:7" if setting.name.endswith("address") else "x"
    return min(setting.default + 1, known["maximum"])


@pytest.mark.parametrize("name", sorted(SETTING_BY_NAME))
def test_a_setting_reaches_the_processes_that_have_it(name: str, tmp_path: Path) -> None:
    given = {name: another(SETTING_BY_NAME[name]), "model": "a/b", "state": tmp_path, "tls": "certs"}
    plan = FleetPlan(**given, **TOGETHER.get(name, {}))
    settings = load(ControllerConfig, plan.controller().argv[4:], {})
    assert getattr(settings, name, None) != getattr(ControllerConfig, name, None) or name in NOT_THE_CONTROLLERS
    for spec in plan.workers("127.0.0.1:1"):
        worker = load(WorkerConfig, spec.argv[4:], {})
        assert getattr(worker, name, None) != getattr(WorkerConfig, name, None) or name in NOT_THE_WORKERS


@pytest.mark.parametrize("count", [0, 65])
def test_a_plan_needs_a_sane_number_of_workers(tmp_path: Path, count: int) -> None:
    roles = {role: RolePlan(count if role == "decoder" else 1) for role in ("encoder", "transformer", "decoder")}
    with pytest.raises(InvalidRequest, match="decoders"):
        FleetPlan(model="a/b", state=tmp_path, roles=roles)


async def test_the_loop_of_grpc_and_the_supervisor_live_together(supervisor: Supervisor) -> None:
    """gRPC has threads and fork handlers; starting children beside it must not disturb either."""
    argv = (sys.executable, str(TOY), "--address", "127.0.0.1:0")
    supervisor.start(ProcessSpec("controller", argv, {"PYTHONPATH": PYTHONPATH}, keeps_address=True))
    async with grpc.aio.insecure_channel(await supervisor.ready("controller", READY_S)) as channel:
        supervisor.start(script("other", "print('READY x:1', flush=True); input()"))
        await asyncio.wait_for(channel.channel_ready(), READY_S)
        assert await supervisor.ready("other", READY_S) == "x:1"


async def test_who_is_waited_for_is_told_and_what_it_said_last(
    supervisor: Supervisor, notices: list[str], tmp_path: Path
) -> None:
    log = supervisor.log("slow")
    log.parent.mkdir(parents=True)
    log.write_text('{"message": "of the last start"}\n')
    code = """
import sys
print('{"message": "reads weights, 3 of 7"}', file=sys.stderr, flush=True)
import os, select
select.select([os.open("gate", os.O_RDWR)], [], [])
print("READY x:1", flush=True)
import signal; signal.pause()
"""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    supervisor.start(script("slow", code.replace('"gate"', repr(str(gate)))))
    ready = asyncio.ensure_future(supervisor.ready("slow", READY_S))

    def waiting() -> list[str]:
        return [] if ready.done() else ["slow"]

    async with supervisor.telling("waiting", waiting, every_s=0.05):
        await eventually(lambda: any("slow (reads weights, 3 of 7)" in words for words in notices), READY_S)
        with gate.open("wb", buffering=0) as writer:
            writer.write(b"go")
            await ready
    assert not any("of the last start" in words for words in notices)
    assert re.match(r"waiting for \d+ s: slow", notices[0])


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('{"message": "a"}\n{"message": "b"}\n', "b"),
        ('{"message": "a"}\n{"mess', "a"),
        ("a traceback\n", "a traceback"),
        ("", ""),
        ('{"message": ""}\n[1]\n', "[1]"),
    ],
)
def test_the_last_message_of_a_log(lines: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(lines)
    assert last_message(tmp_path / "log") == words
    assert last_message(tmp_path / "none") == ""
