"""Text that a terminal can show: no control characters from others, and nothing that its encoding lacks. And stderr.

Request ids, errors, names of models and folders come from others. A terminal acts on some of what it is sent: escape
sequences move its cursor, change its title, or answer as if a person had typed. So all that is printed, for people or
into a pipe (which often ends at a terminal, too), goes through `visible`.

Sentences on stderr may get lost, and never stop work, neither by a slow reader nor by a closed stderr. `say` is for
commands that end soon. `Voice` is for those that keep processes running: a thread of its own writes. Any thread may
use it.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import queue
import sys
import threading
import unicodedata

NOT_SHOWN = frozenset(("Cc", "Cs", "Zl", "Zp"))
"""Unicode's categories of control characters, lone surrogates, separators of lines and of paragraphs."""

TURNS_TEXT = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Unicode's controls of direction (property Bidi_Control): they can show one name as another."""

SPELLED = "triptych-spelled"
"""Name of the error handler for characters that an encoding lacks, for `str.encode`."""

_PLAIN = {"·": "-", "✗": "x", "×": "x", "µ": "u", "…": "~", "━": "=", "╸": "=", "╺": "=", "█": "#", "▐": "#"}
"""Our own marks, as ASCII has them: as wide, so that tables stay straight."""

WAITING_MAX = 1000
"""Sentences that wait for a slow reader; later ones are dropped."""
CLOSE_TIMEOUT_S = 1.0
"""How long the last words may take."""


def visible(text: object) -> str:
    """Text in one line, with nothing that a terminal acts on: a space for tabs and line ends, `\\x1b` for an escape."""
    words = str(text)
    if any(mark in words for mark in "\t\n\r\v\f"):
        words = " ".join(words.split())
    if words.isascii() and words.isprintable():
        return words
    return "".join(
        _escaped(one) if unicodedata.category(one) in NOT_SHOWN or one in TURNS_TEXT else one for one in words
    )


def spelled(text: object, encoding: str) -> str:
    """As `visible`, without characters that `encoding` lacks."""
    return visible(text).encode(encoding, SPELLED).decode(encoding)


def prepare_streams() -> None:
    """Let stdout and stderr take any text in any encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SPELLED)


def say(sentence: str) -> None:
    """Write a line to stderr, if that can be done, without anything that a terminal acts on."""
    if sys.stderr is None:  # as after 2>&-
        return
    with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
        data = f"{visible(sentence)}\n".encode(sys.stderr.encoding or "utf-8", SPELLED)
        # Past Python's buffer, which would keep what failed and try it again at the end.
        descriptor = sys.stderr.fileno()
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


def _escaped(one: str) -> str:
    if "\udc80" <= one <= "\udcff":  # a byte of a file's name that is no UTF-8
        return f"\\x{ord(one) - 0xDC00:02x}"
    return one.encode("ascii", "backslashreplace").decode() if ord(one) > 0x7F else f"\\x{ord(one):02x}"


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(one) or ("#" if "▀" <= one <= "▟" else _escaped(one)) for one in text), error.end


codecs.register_error(SPELLED, _spell)
