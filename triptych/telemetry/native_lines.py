"""Makes log records of what native libraries write: lines on stdin become lines of JSON on stdout.

It is a process of its own, so that it still has the last lines of a process that crashes. `native.py` starts it by
this file's path, without the rest of the project.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time

RECORD_BYTES_MAX = 8192
"""Longer lines are cut."""
LEVELS = {"I": "INFO", "W": "WARNING", "E": "ERROR", "F": "CRITICAL"}
GLOG = re.compile(r"([IWEF])\d{4}(?:\d{4})? \d\d:\d\d:\d\d\.\d+ +\d+ +([^\]]*)\] ?")
"""Begins the lines of glog and absl: level, date, time, thread, place in the source."""


def record(line: str, service: str, now_s: float) -> str:
    """A line as a record of the logger `native`. Where it begins as glog's do, its level is the library's."""
    found = GLOG.match(line)
    fields = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s)) + f".{int(now_s % 1 * 1000):03d}Z",
        "level": LEVELS[found[1]] if found else "WARNING",
        "logger": "native",
        "service": service,
        "message": line[found.end() :] if found else line,
    }
    if found:
        fields["place"] = found[2]
    return json.dumps(fields, ensure_ascii=False)


def main() -> None:
    """Copy until the last writer is gone. Signals are ignored: the writer may still write when it gets one."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while line := sys.stdin.buffer.readline(RECORD_BYTES_MAX):
        if text := line.decode(errors="replace").strip():
            os.write(1, (record(text, sys.argv[1], time.time()) + "\n").encode(errors="replace"))


if __name__ == "__main__":
    main()
