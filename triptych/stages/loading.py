"""Errors of the libraries that load models, each as one sentence that says what was being loaded.

The libraries don't list what they raise (a file that lies, a class that another version lacks, a device without
memory), so this catches everything; our own errors stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from triptych.errors import FAILURE_CHARS_MAX, ModelInvalid, TriptychError, system_text
from triptych.stages.packages import explained


@contextmanager
def loading(what: str, failed: str = "can't be loaded") -> Iterator[None]:
    """Raise `ModelInvalid` for any error, with `what` as the subject, for example "component 'vae' of /models/x/vae".

    `MissingExtra` is raised for a package that isn't there.
    """
    try:
        yield
    except TriptychError:
        raise
    except Exception as error:
        if (missing := explained(error, what)) is not None:
            raise missing from error
        raise ModelInvalid(f"{what} {failed}: {said(error)}") from error


def said(error: Exception) -> str:
    """What an error of a library says, in one line; its type where that is needed to understand it."""
    text = " ".join((system_text(error) if isinstance(error, OSError) else str(error)).split())[:FAILURE_CHARS_MAX]
    plain = (OSError, ValueError, RuntimeError)
    return text if text and isinstance(error, plain) else f"{type(error).__name__}{': ' if text else ''}{text}"
