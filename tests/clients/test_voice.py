"""Failing to say something never stops work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.clients.test_launcher import POLICY, READY_S, script
from tests.fleet.processes import eventually
from triptych_client.launcher import Supervisor

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "clients")))}


async def test_a_notice_that_cannot_be_given_keeps_the_process_running(tmp_path: Path) -> None:
    def broken(_sentence: str) -> None:
        raise BrokenPipeError

    supervisor = Supervisor(tmp_path, POLICY, broken)
    try:
        supervisor.start(script("child", "print('READY x:1', flush=True); import signal; signal.pause()"))
        await supervisor.ready("child", READY_S)
        before = supervisor.pids["child"]
        os.kill(before, signal.SIGKILL)
        await eventually(lambda: supervisor.pids.get("child", before) != before, READY_S)
    finally:
        await supervisor.kill()


SAYS = "import sys; from triptych_client.terminal import Voice\nwith Voice() as voice:\n"


def test_a_reader_that_has_gone_costs_sentences_only() -> None:
    code = SAYS + "    sys.stdin.read()\n    for n in range(9): voice.say('x' * 1000)\nprint('alive')"
    with subprocess.Popen(
        (sys.executable, "-c", code), stdin=-1, stdout=-1, stderr=subprocess.PIPE, text=True, env=ENV
    ) as process:
        assert process.stderr is not None
        process.stderr.close()
        process.stderr = None
        out, _ = process.communicate("", timeout=READY_S)
    assert (process.returncode, out) == (0, "alive\n")


def test_a_reader_that_stands_still_holds_up_nothing() -> None:
    code = SAYS + "    for n in range(3000): voice.say('x' * 1000)\nprint('alive')"
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            (sys.executable, "-c", code), stdout=-1, stderr=writer, text=True, env=ENV, timeout=READY_S, check=False
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert (done.returncode, done.stdout) == (0, "alive\n")
