"""The process that decodes untrusted files.

    python -P -m triptych.media.decoding.child PARENT_PID CPU_S BYTES IDLE_S

The kernel bounds its memory for its whole life, and its CPU time for each request. It writes no files, and ends with
its parent or after a while without work.

Standard input has, for each request, a line of JSON (whether pixels are wanted; each file's name, kind and length) and
the files' bytes. Standard output gets, if pixels are wanted, a line (`file`, `width`, `height`, and when it is shown)
and the samples of each picture or frame, and a line (`file`, `channels`, `samples`, `rate`) and the float32 samples of
each piece of sound, one channel after another; then a line with `refused`, which has the error or is empty.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from triptych.errors import InvalidRequest
from triptych.media.decoding import bounds, headers
from triptych.media.decoding.decode import pieces, too_much_memory
from triptych.media.decoding.headers import Budget, File
from triptych.media.decoding.values import Frame, Sound

OOM_SCORE = 500
"""If the machine runs out of memory, the kernel ends this process before those with jobs and queues."""
PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h."""


def main() -> None:
    """Serve requests until standard input ends or nothing comes for a while."""
    parent_pid, cpu_s, memory_bytes = (int(argument) for argument in sys.argv[1:4])
    _guard(parent_pid, memory_bytes)
    with open(0, "rb") as source, open(1, "wb") as sink:
        _serve(source, sink, cpu_s, memory_bytes, float(sys.argv[4]))


def _serve(source: BinaryIO, sink: BinaryIO, cpu_s: int, memory_bytes: int, idle_s: float) -> None:
    # A request comes after the answer to the one before, so none is in the buffer, where `select` doesn't see it.
    while select.select([source], [], [], idle_s)[0]:
        files, wants_pixels = _read_request(source)
        if not files:
            return
        _bound_cpu(cpu_s)
        refused = ""
        file = files[0]
        try:
            headers.check(files)
            budget = Budget()
            for number, file in enumerate(files):
                for piece in pieces(file, budget, wants_pixels=wants_pixels):
                    if isinstance(piece, Frame):
                        _send(sink, number, piece)
                    else:
                        _send_sound(sink, number, piece)
                    del piece  # or it would stay while the next is decoded
        except InvalidRequest as error:
            refused = str(error)
        except MemoryError:
            refused = str(too_much_memory(file, memory_bytes))
        except Exception:  # noqa: BLE001  (decoders may raise anything; the sender of the file is told)
            refused = str(headers.refusal(file))
        _line(sink, refused=refused)


def _guard(parent_pid: int, memory_bytes: int) -> None:
    """Set the bounds of the whole life. On systems other than Linux, standard input ends when the parent does."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent_pid:
            sys.exit(1)  # the parent died before the guard was set
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the parent
    Image.preinit()
    statm = Path("/proc/self/statm")
    taken = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 2**28
    limit = taken + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _bound_cpu(cpu_s: int) -> None:
    """Allow so much CPU time from now on. After it the kernel ends the process with SIGXCPU."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + cpu_s, hard))


def _read_request(source: BinaryIO) -> tuple[list[File], bool]:
    """The files, and whether their pixels are wanted. There are no files at the end of the input."""
    line = source.readline(bounds.LINE_BYTES_MAX)
    if not line.endswith(b"\n"):
        return [], False
    asked: dict[str, Any] = json.loads(line)
    files = [File(name, kind, _read(source, size_bytes), *others) for name, kind, size_bytes, *others in asked["files"]]
    return files, asked["pixels"]


def _read(source: BinaryIO, size_bytes: int) -> bytes:
    data = source.read(size_bytes)
    if len(data) < size_bytes:
        sys.exit(1)  # the parent has ended
    return data


def _send(sink: BinaryIO, number: int, frame: Frame) -> None:
    """Send a picture's samples in strips, to avoid a copy of the whole."""
    width, height = frame.picture.size
    times = [time_s.as_integer_ratio() for time_s in frame.shown or ()]  # a float isn't exact
    rate = frame.frames_per_second.as_integer_ratio() if frame.frames_per_second else None
    _line(sink, file=number, width=width, height=height, shown=times, frames_per_second=rate)
    rows = max(1, 2**20 // width)
    for top in range(0, height, rows):
        sink.write(frame.picture.crop((0, top, width, min(top + rows, height))).tobytes())


def _send_sound(sink: BinaryIO, number: int, piece: Sound) -> None:
    channels, samples = piece.samples_CN.shape
    _line(sink, file=number, channels=channels, samples=samples, rate=piece.sample_rate)
    sink.write(piece.samples_CN.astype("<f4").tobytes())


def _line(sink: BinaryIO, **values: object) -> None:
    sink.write(json.dumps(values).encode() + b"\n")
    sink.flush()


if __name__ == "__main__":
    main()
