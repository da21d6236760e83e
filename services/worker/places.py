"""Where a stage's error happened: this tells an error of the job, which will come again, from one of the machine.

A place is a few words and a digest: `IndexError in scheduling_unipc_multistep.step #1a2b3c4d5e6f`. The
digest is of the innermost frames and of the error's text without its numbers, which differ from try to try.
"""

from __future__ import annotations

import re
import traceback
from pathlib import PurePath

import xxhash

from triptych.errors import NotFinite, TriptychError, chain_of

from .health import is_out_of_memory, is_poison

STACK_FRAMES_MAX = 8
"""Innermost frames that count."""
PLACE_CHARS_MAX = 200
_NAME_CHARS_MAX = 80

_MACHINE_TYPES = (OSError, MemoryError, ImportError, TimeoutError, EOFError, TriptychError, SystemError)
_MACHINE_TEXT = re.compile(
    r"CUDA|cuDNN|cuBLAS|\bHIP\b|NCCL|driver|kernel image|can't start new thread|no space left", re.IGNORECASE
)
"""Words by which a RuntimeError tells of the device, its software or the system's resources."""
_VARYING = re.compile(r"0x[0-9a-f]+|[-+]?\d+(\.\d+)?(e[-+]?\d+)?", re.IGNORECASE)


def place_of(error: BaseException, text: str) -> str:
    """The place of an error; empty where the machine may be its cause. `text` is its message, without private words."""
    if any(_is_of_the_machine(one) for one in chain_of(error)):
        return ""
    frames = traceback.extract_tb(error.__traceback__)[-STACK_FRAMES_MAX:]
    if not frames:
        return ""
    lines = [f"{PurePath(frame.filename).name}:{frame.name}:{frame.lineno}" for frame in frames]
    kind = type(error).__name__
    digest = xxhash.xxh3_64_hexdigest("\n".join([kind, *lines, _VARYING.sub("N", text)]).encode())[:12]
    where = f"{PurePath(frames[-1].filename).stem}.{frames[-1].name}"
    return f"{kind[:_NAME_CHARS_MAX]} in {where[:_NAME_CHARS_MAX]} #{digest}"


def _is_of_the_machine(error: BaseException) -> bool:
    if isinstance(error, NotFinite):
        return False
    if isinstance(error, _MACHINE_TYPES) or is_out_of_memory(error):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return is_poison(error) or bool(_MACHINE_TEXT.search(str(error)))
