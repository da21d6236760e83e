"""Sentences on stderr. They may get lost, and never stop work: neither a slow reader nor a closed stderr does.

`say` is for commands that end soon. `Voice` is for those that keep processes running: a thread of its own writes, so
that a reader that stands still blocks nothing. Any thread may use it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading

from triptych_client.terminal import SPELLED, visible

WAITING_MAX = 1000
"""Sentences that wait for a slow reader; later ones are dropped."""
CLOSE_TIMEOUT_S = 1.0
"""How long the last words may take."""


def say(sentence: str) -> None:
    """Write a line to stderr, if that can be done, without anything that a terminal acts on."""
    if sys.stderr is None:  # as after 2>&-
        return
    with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
        data = f"{visible(sentence)}\n".encode(sys.stderr.encoding or "utf-8", SPELLED)
        descriptor = (
            sys.stderr.fileno()
        )  # past Python's buffer, which would keep what failed and try it again at the end
        while data:
            data = data[os.write(descriptor, data) :]


class Voice:
    """Says sentences in their order. Use as a context manager."""

    def __init__(self) -> None:
        self._sentences: queue.Queue[str | None] = queue.Queue(WAITING_MAX)
        self._thread = threading.Thread(target=self._run, name="voice", daemon=True)

    def __enter__(self) -> Voice:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(queue.Full):
            self._sentences.put_nowait(None)
            self._thread.join(CLOSE_TIMEOUT_S)

    def say(self, sentence: str) -> None:
        """Have a line written when stderr takes it."""
        with contextlib.suppress(queue.Full):
            self._sentences.put_nowait(sentence)

    def _run(self) -> None:
        while (sentence := self._sentences.get()) is not None:
            say(sentence)
