"""When a worker suspects itself, and what errors say of the process that met them."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from services.worker import memory_report
from services.worker.group import Group
from services.worker.health import CHECK_PAUSE_S_MAX, FAILURES_MAX, Health, is_ours, is_out_of_memory, is_poison
from triptych.errors import InvalidRequest, RoomGone, SourceCorrupt, TransferFailed, WorkerBroken


def failed(count: int) -> Health:
    health = Health()
    for number in range(count):
        health.failed(f"job-{number}")
    return health


def test_different_jobs_in_a_row_make_it_suspect() -> None:
    assert not failed(FAILURES_MAX - 1).is_suspect
    assert failed(FAILURES_MAX).is_suspect


def test_one_job_that_fails_again_and_again_does_not() -> None:
    health = Health()
    for _ in range(10 * FAILURES_MAX):
        health.failed("job-1")
    assert not health.is_suspect


def test_a_success_begins_the_row_anew() -> None:
    health = failed(FAILURES_MAX - 1)
    health.succeeded()
    health.failed("job-9")
    assert not health.is_suspect


def test_checks_come_ever_more_rarely_until_a_job_is_done() -> None:
    health, pauses = Health(), []
    for number in range(9):
        for one in range(FAILURES_MAX):
            health.failed(f"job-{number}-{one}")
        pauses.append(health.pause_s)
        health.passed()
        assert not health.is_suspect
    assert pauses == [0, 1, 2, 4, 8, 16, 32, CHECK_PAUSE_S_MAX, CHECK_PAUSE_S_MAX]
    health.succeeded()
    assert health.pause_s == 0


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (RuntimeError("it broke"), True),
        (OSError(24, "Too many open files"), True),
        (RoomGone("released"), True),
        (SourceCorrupt("twice"), True),
        (TransferFailed("no mover"), True),
        (InvalidRequest("height", 7, "multiples of 8"), False),
    ],
)
def test_whose_fault_it_may_be(error: Exception, ours: bool) -> None:
    assert is_ours(error) == ours


@pytest.mark.parametrize(
    ("text", "poison"),
    [
        ("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported", True),
        ("CUDA error: an illegal memory access was encountered", True),
        ("CUDA error: unspecified launch failure", True),
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("CUDA error: the launch timed out and was terminated", True),
        ("CUDA error: uncorrectable NVLink error detected during the execution", True),
        ("CUDA error: operation not supported on global/shared address space", True),
        ("CUDA error: unknown error", True),
        ("NCCL error in: ProcessGroupNCCL.cpp:1, unhandled cuda error (run with NCCL_DEBUG=INFO for details)", True),
        ("NCCL communicator was aborted on rank 1.", True),
        ("[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1)", True),
        ("CUDA error: all CUDA-capable devices are busy or unavailable", False),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", False),
        ("CUDA error: no kernel image is available for execution on the device", False),
        ("CUDA error: invalid configuration argument", False),
        ("CUDA error: out of memory", False),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
    ],
)
def test_sticky_errors(text: str, poison: bool) -> None:
    assert is_poison(RuntimeError(text)) == poison


def test_torchs_own_classes_of_errors() -> None:
    """With the words that CUDA's runtime has for them, which torch puts behind `CUDA error: `."""
    import torch
    from torch.distributed import DistBackendError

    assert issubclass(torch.AcceleratorError, RuntimeError)
    assert is_poison(torch.AcceleratorError("CUDA error: device-side assert triggered"))
    assert not is_poison(torch.AcceleratorError("CUDA error: invalid argument"))
    assert is_poison(DistBackendError("ncclSystemError: a system call failed"))
    assert not is_poison(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))


def test_numpys_and_torchs_own_words() -> None:
    """The real errors, of a process whose address space is capped."""
    program = (
        "import resource, torch, numpy as np\n"
        "from services.worker.health import is_out_of_memory\n"
        "from services.worker.memory_report import shortage\n"
        "cap = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + 2**28\n"
        "resource.setrlimit(resource.RLIMIT_AS, (cap, cap))\n"
        "for make in (lambda: torch.empty(2**32, dtype=torch.uint8), lambda: np.empty(2**32, np.uint8)):\n"
        "    try:\n"
        "        make()\n"
        "    except Exception as error:\n"
        "        assert is_out_of_memory(error), error\n"
        "        print(shortage(error, 'cpu').sentence('cpu'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("out of memory on cpu: 4 GiB more were asked for; "), line
        assert "that this process may have were free" in line


def test_what_an_error_holds_is_given_back() -> None:
    class Large:
        alive = 0

        def __init__(self) -> None:
            Large.alive += 1

        def __del__(self) -> None:
            Large.alive -= 1

    def work() -> None:
        large = Large()
        raise MemoryError(large.alive)

    try:
        work()
    except MemoryError as error:
        assert Large.alive == 1
        memory_report.give_back(error)
        assert Large.alive == 0


def test_a_machine_without_a_cap() -> None:
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    text = memory_report.shortage(np.exceptions.AxisError("no memory error"), "cpu").sentence("cpu")
    assert "the amount asked for is not known" in text
    assert "were free" in text


def test_plain_memory_errors() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB."))
    assert not is_out_of_memory(InvalidRequest("prompt", "out of memory", "text"))
    assert not is_out_of_memory(WorkerBroken("out of memory"))
    found = memory_report.shortage(RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB."), "cpu")
    assert (found.needed_bytes, found.is_capped) == (20 * 2**30, False)
    assert 0 < found.available_bytes < found.total_bytes
    assert found.sentence("cpu").startswith("out of memory on cpu: 20 GiB more were asked for; ")


async def test_whoever_waits_for_it_goes_on() -> None:
    """Its frame is in the error's traceback, too, and only waits."""

    async def work() -> str:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str] = loop.create_future()

        def give_back(error: BaseException) -> None:
            memory_report.give_back(error)
            done.set_result("done")

        try:
            raise MemoryError
        except MemoryError as error:
            loop.call_soon(give_back, error)
            return await done

    assert await asyncio.wait_for(work(), 5) == "done"


def test_a_group_of_processes_that_memory_breaks_has_run_out_and_ends() -> None:
    class Short:
        def run(self, *_arguments: Any) -> dict[str, object]:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with pytest.raises(WorkerBroken) as broken:
        Group(Short(), []).run({}, lambda _step: None, lambda: False)  # type: ignore[arg-type]
    assert is_out_of_memory(broken.value)
    assert is_poison(broken.value)
    assert memory_report.shortage(broken.value, "cpu").needed_bytes == 20 * 2**30
