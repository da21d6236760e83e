"""Text that a terminal can show: no control characters from others, and nothing that its encoding lacks.

Request ids, errors, names of models and folders come from others. A terminal acts on some of what it is sent: escape
sequences move its cursor, change its title, or answer as if a person had typed. So all that is printed, for people or
into a pipe (which often ends at a terminal, too), goes through `visible`.
"""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

NOT_SHOWN = frozenset(("Cc", "Cs", "Zl", "Zp"))
"""Unicode's categories of control characters, lone surrogates, separators of lines and of paragraphs."""

TURNS_TEXT = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Unicode's controls of direction (property Bidi_Control): they can show one name as another."""

SPELLED = "triptych-spelled"
"""Name of the error handler for characters that an encoding lacks, for `str.encode`."""

_PLAIN = {"·": "-", "✗": "x", "×": "x", "µ": "u", "…": "~", "━": "=", "╸": "=", "╺": "=", "█": "#", "▐": "#"}
"""Our own marks, as ASCII has them: as wide, so that tables stay straight."""


def visible(text: object) -> str:
    """Text in one line, with nothing that a terminal acts on: a space for tabs and line ends, `\\x1b` for an escape."""
    words = " ".join(str(text).replace("\r\n", "\n").split()) if _has_space(str(text)) else str(text)
    if words.isascii() and words.isprintable():
        return words
    return "".join(_escaped(one) if _is_hidden(one) else one for one in words)


def spelled(text: object, encoding: str) -> str:
    """As `visible`, without characters that `encoding` lacks."""
    return visible(text).encode(encoding, SPELLED).decode(encoding)


def prepare_streams() -> None:
    """Let stdout and stderr take any text in any encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SPELLED)


def _has_space(text: str) -> bool:
    return any(mark in text for mark in "\t\n\r\v\f")


def _is_hidden(one: str) -> bool:
    return unicodedata.category(one) in NOT_SHOWN or one in TURNS_TEXT


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
