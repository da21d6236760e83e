"""Runs the model checker spin: exhaustive checks, compiled with gcc, and random simulations.

`python -m tests.model_checker.spin` lists the configurations; with a configuration's name it checks that one and prints
the outcome. All files are made in a temporary folder.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.model_checker.configurations import BY_NAME, Configuration

MODEL = Path(__file__).parents[2] / "docs" / "model" / "ring.pml"
INSTALL = "spin and gcc are needed: apt install spin gcc"

MEMORY_MIB_MAX = 3000
"""Of one search. The largest run by hand takes nearly all of it, the largest in the tests a fifth."""
HASH_BITS = 22
"""Of the table of states: four million places, more states share them."""
DEPTH_MAX = 100_000
"""Steps of one schedule; a few thousand are usual, and a check that reaches this is refused."""
SEARCH_TIMEOUT_S = 1800.0
"""Of one search, for the largest configurations, which are run by hand."""
TOOL_TIMEOUT_S = 120.0
"""Of spin and of gcc, which take seconds."""
SIMULATION_STEPS_MAX = 10_000
"""Steps of one simulation; a few hundred are usual, and one that is cut off here is refused."""
SIMULATION_TIMEOUT_S = 30.0

FLAGS = ("-DSAFETY", "-DNOCOMP")
"""For gcc: bad states only, kept as they are, which is fast."""
LIVENESS_FLAGS = ("-DNFAIR=3",)
"""Schedules: fairness for up to some ninety processes."""
LARGE_FLAGS = ("-DSAFETY", "-DCOLLAPSE")
LARGE_LIVENESS_FLAGS = ("-DNFAIR=3", "-DCOLLAPSE")
"""The same, with states kept in a quarter of the room, which takes half as much time again."""
SHORTEST_FLAGS = ("-DSAFETY", "-DBFS")
"""Breadth first: the counterexample is as short as any."""
WEAK_FAIRNESS = ("-a", "-f")

_INCOMPLETE = ("Search not completed", "max search depth too small", "out of memory", "MEMLIM bound", "aborting")


class Outcome(NamedTuple):
    """What an exhaustive search did."""

    error_count: int
    state_count: int
    depth: int
    seconds: float
    memory_mib: float
    error: str
    """What the search says of the first error; empty where there was none."""
    trail: tuple[str, ...]
    """The steps that led to it, and what the model says of it."""


class SpinFailed(RuntimeError):
    """A tool failed, or a search wasn't exhaustive."""


def is_installed() -> bool:
    """Whether the tools are there."""
    return all(shutil.which(tool) for tool in ("spin", "gcc", "cat"))


def check(configuration: Configuration) -> Outcome:
    """Search all states. Raises SpinFailed where not all were seen and no error was found."""
    fairly = WEAK_FAIRNESS if configuration.is_liveness else ()
    search = ["./pan", "-n", f"-m{DEPTH_MAX}", f"-w{HASH_BITS}", *fairly]
    with tempfile.TemporaryDirectory() as folder:
        _run(["spin", *configuration.defines, "-a", str(MODEL)], folder, TOOL_TIMEOUT_S)
        _run(["gcc", *_flags(configuration), "-o", "pan", "pan.c"], folder, TOOL_TIMEOUT_S)
        begin_s = time.monotonic()
        output = _run(search, folder, SEARCH_TIMEOUT_S, is_checked=False)
        outcome = _parse(output, time.monotonic() - begin_s)
        return outcome._replace(trail=_trail(configuration, folder)) if outcome.error_count else outcome


def _flags(configuration: Configuration) -> list[str]:
    """What the search is compiled with; optimising must pay within the search."""
    optimise = "-O0" if configuration.violation else "-O2" if configuration.is_large else "-Og"
    if configuration.is_liveness:
        flags = LARGE_LIVENESS_FLAGS if configuration.is_large else LIVENESS_FLAGS
    elif configuration.is_shortest:
        flags = SHORTEST_FLAGS
    else:
        flags = LARGE_FLAGS if configuration.is_large else FLAGS
    return [optimise, "-w", f"-DMEMLIM={MEMORY_MIB_MAX}", *flags]


def expand(configuration: Configuration, folder: str) -> str:
    """The model with its includes and sizes filled in, as a file in `folder`, for `simulate`."""
    path = f"{folder}/{configuration.name.replace(' ', '_')}.pml"
    command = ["gcc", "-E", "-P", "-x", "c", "-DSIMULATION", *configuration.defines, str(MODEL), "-o", path]
    _run(command, folder, TOOL_TIMEOUT_S)
    return path


def simulate(path: str, seed: int, folder: str) -> list[str]:
    """The steps of one random schedule of an expanded model."""
    with tempfile.TemporaryDirectory(dir=folder) as own:  # spin leaves files where it runs
        command = ["spin", "-Pcat", "-T", f"-n{seed}", f"-u{SIMULATION_STEPS_MAX}", path]
        output = _run(command, own, SIMULATION_TIMEOUT_S)
    if "processes created" not in output or "depth-limit" in output:
        raise SpinFailed(f"the schedule of seed {seed} doesn't end")
    return _steps(output)


def _parse(output: str, seconds: float) -> Outcome:
    errors = re.search(r"depth reached (\d+), errors: (\d+)", output)
    states = re.search(r"(\d+) states, stored", output)
    memory = re.search(r"([\d.]+)\s+(?:total actual memory usage|memory usage \(Mbyte\))", output)
    if errors is None or states is None or memory is None:
        raise SpinFailed(output[-2000:])
    error_count, error = int(errors[2]), re.search(r"pan:1: (.*)", output)
    if error_count == 0 and any(sign in output for sign in _INCOMPLETE):
        raise SpinFailed(f"not all states were seen: {output[-2000:]}")
    message = error[1] if error else ""
    return Outcome(error_count, int(states[1]), int(errors[1]), seconds, float(memory[1]), message, ())


def _trail(configuration: Configuration, folder: str) -> tuple[str, ...]:
    command = ["spin", "-k", f"{MODEL.name}.trail", "-t", "-T", *configuration.defines, str(MODEL)]
    return tuple(_steps(_run(command, folder, TOOL_TIMEOUT_S, is_checked=False)))


def _steps(output: str) -> list[str]:
    """The lines that the model printed, up to the first violation."""
    lines = []
    for line in map(str.strip, output.splitlines()):
        if line.startswith(("@ ", "violated: ", "<<<<<START OF CYCLE")):
            lines.append(line)
        if line.startswith("violated: "):
            break
    return lines


def _run(command: list[str], folder: str, timeout_s: float, *, is_checked: bool = True) -> str:
    """A tool's output. Raises SpinFailed where its status matters and isn't 0: the model is wrong, or violated."""
    done = subprocess.run(command, cwd=folder, timeout=timeout_s, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    if is_checked and done.returncode != 0:
        raise SpinFailed(f"{' '.join(command)} ended with {done.returncode}: {output[-2000:]}")
    return output


def main(names: list[str]) -> None:
    """See the module's docstring."""
    for name in names:
        outcome = check(BY_NAME[name])
        print(f"{name}: {outcome._replace(trail=())}")
        print(*outcome.trail, sep="\n")
    if not names:
        print(*BY_NAME, sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
