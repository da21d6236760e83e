"""One guest, from its boot to the end of its command.

The command's outputs come through two serial ports of the guest and two pipes. A guest that switches itself off loses
what its ports still hold. So it doesn't: it ends both outputs with a mark that nobody can guess, followed by the exit
status, and is killed when both have arrived.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from host import VmError

STATUS_BYTES = 3
"""An exit status, 0 to 255, in decimal."""
CHUNK_BYTES = 1 << 16
"""What is read from a pipe at once: as much as it holds."""
TRANSLATED_MIB = 1024
"""Memory for translated code, of the host. When it is full all of it is thrown away; `import torch` makes 0.3 GB."""
CPU_MODEL = "Nehalem"
"""A processor with all that today's Python wheels require (x86-64-v2) and nothing that is slow in emulation, above all
AVX and the one instruction that copies any number of bytes. Programs that find these use them.
"""
OF_THE_HOST = (b"OPENBLAS_CORETYPE", b"OPENBLAS_L2_SIZE", b"MKL_ENABLE_INSTRUCTIONS", b"ONEDNN_MAX_CPU_ISA")
"""Variables that name the caller's processor. With another one's instructions the guest's programs die of them."""
KERNEL_OPTIONS = (
    *("console=ttyS0", "quiet", "panic=-1"),  # a guest whose kernel panics ends
    *("mitigations=off", "nokaslr", "cryptomgr.notests"),  # what takes time and protects nothing here
    "norandmaps",  # code at the same address in each process, which is translated only once
    *("random.trust_cpu=1", "no_timer_check", "tsc=reliable"),  # what takes long or fails at times on emulated CPUs
)


@dataclass(frozen=True)
class Guest:
    """What the caller may choose."""

    memory_mib: int
    cpus: int
    timeout_s: int
    """After this time, which begins before the boot, the guest is killed."""
    writable: Path | None
    """A folder of the host that the command may write to, at the same path."""
    kernel_log: Path | None
    """A file for what the guest's kernel says."""


def run(guest: Guest, image: Path, command: str) -> int:
    """Boot the guest, run a command there in bash, pass its outputs on as they come, and return its exit status.

    The command gets the caller's folder and environment, and nothing on stdin. Only the main thread can call this.
    Raises `VmError` where the time is up, or the guest ends by itself.
    """

    def give_up(number: int, frame: FrameType | None) -> None:
        raise VmError(f"the guest was killed because it was not done within {guest.timeout_s} s")

    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory(prefix="triptych-vm-") as name:
        orders = Path(name)
        write_orders(orders, command, mark, guest)
        from_output, output = os.pipe()
        from_errors, errors = os.pipe()
        log = guest.kernel_log or orders / "log"
        process = subprocess.Popen(
            qemu(guest, image, orders, output, errors),
            stdin=subprocess.DEVNULL,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
            pass_fds=(output, errors),
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        )
        os.close(output)
        os.close(errors)
        try:
            signal.signal(signal.SIGALRM, give_up)  # ends any wait, also one for a reader of the outputs
            signal.alarm(guest.timeout_s)
            status = relay({from_output: 1, from_errors: 2}, b"\0" + mark.encode())
        finally:
            signal.alarm(0)
            process.kill()
            process.wait()
        if status is None:
            said = log.read_text(errors="replace").splitlines() or ["it said nothing"]
            reason = next((line for line in said if "panic" in line), said[-1])
            raise VmError(f"the guest ended before its command did: {reason}")
        return status


def write_orders(orders: Path, command: str, mark: str, guest: Guest) -> None:
    """Fill the folder in which `guest-run.sh` finds all that differs from guest to guest."""
    for script in Path(__file__).parent.glob("guest-*.sh"):
        shutil.copy(script, orders)
    (orders / "command").write_text(command)
    (orders / "folder").write_text(os.getcwd())
    passed = (variable for variable in os.environb.items() if variable[0] not in OF_THE_HOST)
    (orders / "environment").write_bytes(b"".join(b"%s=%s\0" % variable for variable in passed))
    (orders / "writable").write_text(str(guest.writable or ""))
    (orders / "mark").write_text(mark)


def qemu(guest: Guest, image: Path, orders: Path, output: int, errors: int) -> list[str]:
    """Return the command line of QEMU, which gets the descriptors of two pipes for the command's outputs."""
    bogomips = re.search(r"bogomips\s*: (\d+)", Path("/proc/cpuinfo").read_text())
    # The guest's time-stamp counter is the host's. To measure its frequency can fail on a busy host.
    frequency = [f"tsc_early_khz={int(bogomips[1]) * 500}"] if bogomips else []
    shares = {"root": (Path("/"), "on"), "orders": (orders, "on")}
    if guest.writable:
        shares["writable"] = (guest.writable, "off")
    arguments = [
        *("setpriv", "--pdeathsig", "KILL"),  # however this process ends, QEMU ends, too
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35,sata=off,smbus=off,vmport=off"),
        *("-accel", f"tcg,thread=multi,tb-size={TRANSLATED_MIB}", "-cpu", CPU_MODEL),
        *("-m", str(guest.memory_mib), "-smp", str(guest.cpus)),
        *("-kernel", str(image / "vmlinux"), "-initrd", str(image / "initramfs")),
        *("-append", " ".join((*KERNEL_OPTIONS, *frequency))),
        *("-serial", "stdio"),
        *("-device", "virtio-serial-pci"),
    ]
    for name, descriptor in (("output", output), ("errors", errors)):
        arguments += ["-chardev", f"file,id={name},path=/dev/fd/{descriptor}"]
        arguments += ["-device", f"virtserialport,chardev={name},name={name}"]
    for name, (folder, readonly) in shares.items():
        path = str(folder).replace(",", ",,")  # QEMU's way to write a comma
        options = f"local,id={name},path={path},security_model=none,multidevs=remap,readonly={readonly}"
        arguments += ["-fsdev", options, "-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"]
    return arguments


def relay(outputs: dict[int, int], mark: bytes) -> int | None:
    """Copy what comes out of each pipe to its descriptor, up to the mark, and return the status that follows it.

    None where a pipe ends without the mark.
    """
    held = dict.fromkeys(outputs, b"")
    status = None
    while held:
        for pipe in select.select(list(held), [], [])[0]:
            chunk = os.read(pipe, CHUNK_BYTES)
            if not chunk:
                return None
            passed, held[pipe] = split(held[pipe] + chunk, mark)
            while passed:
                passed = passed[os.write(outputs[pipe], passed) :]
            if len(held[pipe]) >= len(mark) + STATUS_BYTES:
                status = int(held.pop(pipe)[len(mark) :][:STATUS_BYTES])
    return status


def split(data: bytes, mark: bytes) -> tuple[bytes, bytes]:
    """Part the data before the mark, or before what may be the beginning of one, at their end."""
    start = data.find(mark)
    if start < 0:
        start = data.rfind(mark[:1], -len(mark))  # a mark has this byte at its beginning only
        if start < 0 or not mark.startswith(data[start:]):
            start = len(data)
    return data[:start], data[start:]
