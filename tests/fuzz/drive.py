"""`python -m tests.fuzz.drive [HARNESS …] --runs N`: feeds each harness N inputs, each harness in a process of its own.

With atheris inputs are chosen by the coverage of triptych's own code; where it can't be had (it needs a wheel for this
Python), or with `--engine seeds`, good inputs are bent at random, from a seed. Either way a process may take
`MEMORY_BYTES_MAX` more address space than it has after its imports, and an input `INPUT_TIMEOUT_S`. An input that does
not return is written to `tests/fuzz/found/`, and the run fails.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import importlib.util
import logging
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY_BYTES_MAX = 512 * 2**20
"""What an input may make the process take: the harnesses' inputs are 64 KiB at most."""
INPUT_TIMEOUT_S = 10
"""Longest for one input. They take microseconds; the machine may be busy."""
INPUT_BYTES_MAX = 1 << 16
CRASHED = 77
"""Exit code of a process whose input didn't return, as libFuzzer's."""
OneInput = Callable[[bytes], None]
Bend = Callable[[random.Random, bytes], bytes]
FOUND = Path(__file__).parent / "found"
ROOT = Path(__file__).parent.parent.parent


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.drive")
    parser.add_argument("harness", nargs="*", help="names; all where none is given")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs for each harness")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", choices=("atheris", "seeds"), default="atheris" if has_atheris() else "seeds")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        _drive(options.harness[0], options.runs, options.seed, options.engine)
        return
    failed = False
    for name in options.harness or _names():
        done = run(name, options.runs, options.seed, options.engine)
        print(done.line, flush=True)
        if not done.ok:
            print(done.output[-4000:], flush=True)
            failed = True
    sys.exit(failed)


def has_atheris() -> bool:
    """Whether inputs can be chosen by coverage."""
    return importlib.util.find_spec("atheris") is not None


class Done:
    """One harness' run."""

    def __init__(self, name: str, code: int, seconds: float, output: str) -> None:
        self.name, self.ok, self.output = name, code == 0, output
        counts = re.findall(r"^(?:Done |#)(\d+)", output, re.MULTILINE)
        self.count = int(counts[-1]) if counts else 0
        coverage = re.findall(r"cov: (\d+)", output)
        reached = f", coverage {coverage[-1]}" if coverage else ""
        self.line = f"{name}: {self.count:,} inputs in {seconds:.0f} s{reached}: {'ok' if self.ok else 'FAILED'}"


def run(name: str, runs: int, seed: int = 1, engine: str = "seeds") -> Done:
    """Run one harness in a process of its own."""
    command = [sys.executable, "-m", "tests.fuzz.drive", name, "--here", "--runs", str(runs), "--seed", str(seed)]
    started_s = time.monotonic()
    done = subprocess.run(
        [*command, "--engine", engine],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=ROOT,
        check=False,
    )
    return Done(name, done.returncode, time.monotonic() - started_s, done.stdout)


def _names() -> list[str]:
    from tests.fuzz.harnesses import names

    return list(names())


def _drive(name: str, runs: int, seed: int, engine: str) -> None:
    logging.disable()
    if engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["triptych", "services"]):
            harness = _harness(name)
    else:
        harness = _harness(name)
    seeds = harness.seeds()
    for one in seeds:  # whatever is imported late, or cached, is so before memory is counted
        harness.one_input(one)
    one_input = _guarded(name, harness.one_input)
    _limit_memory()
    if engine == "atheris":
        _with_atheris(one_input, harness.bend, seeds, runs, seed)
    else:
        _with_seeds(one_input, harness.bend, seeds, runs, seed)


def _harness(name: str) -> Any:
    from tests.fuzz.harnesses import HARNESSES

    return HARNESSES[name]


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES_MAX
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _guarded(name: str, one_input: OneInput) -> OneInput:
    def guarded(data: bytes) -> None:
        try:
            one_input(data)
        except BaseException:
            FOUND.mkdir(exist_ok=True)
            path = FOUND / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
            path.write_bytes(data)
            print(f"\ndid not return: {path}, {len(data)} bytes: {data[:200].hex()}", file=sys.stderr, flush=True)
            raise

    return guarded


def _with_atheris(one_input: OneInput, bend: Bend, seeds: list[bytes], runs: int, seed: int) -> None:
    import atheris

    def bend_or_mutate(data: bytes, size_max: int, number: int) -> bytes:
        rng = random.Random(number)
        return bend(rng, data)[:size_max] if rng.random() < 0.6 else bytes(atheris.Mutate(data, size_max))

    with tempfile.TemporaryDirectory() as corpus:
        for number, one in enumerate(seeds):
            (Path(corpus) / str(number)).write_bytes(one[:INPUT_BYTES_MAX])
        flags = [f"-runs={runs}", f"-seed={seed}", f"-max_len={INPUT_BYTES_MAX}", f"-timeout={INPUT_TIMEOUT_S}"]
        flags += ["-len_control=20", f"-artifact_prefix={corpus}/", "-rss_limit_mb=0", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *flags, corpus], one_input, custom_mutator=bend_or_mutate)
        atheris.Fuzz()


def _with_seeds(one_input: OneInput, bend: Bend, seeds: list[bytes], runs: int, seed: int) -> None:
    faulthandler.register(signal.SIGALRM, chain=True)  # shows where it hangs; then the signal ends the process
    rng = random.Random(seed)
    for _ in range(runs):
        data = _next_input(rng, bend, seeds)
        signal.setitimer(signal.ITIMER_REAL, INPUT_TIMEOUT_S)
        one_input(data)
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"Done {runs} runs")


def _next_input(rng: random.Random, bend: Bend, seeds: list[bytes]) -> bytes:
    from tests.fuzz.nasty import mutate

    chance = rng.random()
    if chance < 0.02:
        return rng.randbytes(rng.randrange(300))
    data = bend(rng, rng.choice(seeds)) if chance < 0.7 else rng.choice(seeds)
    return data if chance < 0.4 else mutate(rng, data, seeds)


if __name__ == "__main__":
    main()
