"""Errors of the libraries as ours: packages that are missing or broken, models that can't be loaded, blocks' refusals.

The libraries don't list what they raise (a file that lies, a class that another version lacks, a device without
memory), so `told` and `loading` catch everything; our own errors stay as they are.

A `ValueError` or `TypeError` is a refusal of the caller's values, and no bug, where the innermost frame of its
traceback stands on a `raise` statement of diffusers' own code outside its models. An error that an operation ran into
by itself (`None + 1`, a shape that doesn't fit) or that torch raised stays what it is. An `UnboundLocalError` in a
block is a refusal, too: it means that diffusers has no branch for this combination of inputs. The whole pipeline would
fail alike, so trying again doesn't help.
"""

from __future__ import annotations

import dis
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from triptych.errors import (
    FAILURE_CHARS_MAX,
    InvalidRequest,
    MissingExtra,
    ModelInvalid,
    TriptychError,
    chain_of,
    system_text,
)
from triptych.security.privacy import redact, texts_in

_RAISE = dis.opmap["RAISE_VARARGS"]
_OUR_EXTRA = "serve"
_OURS = ("__main__", "triptych", "triptych_client", "triptych_services", "services")
_DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python", "bs4": "beautifulsoup4", "google": "protobuf"}
"""Names to install, where they differ from the names to import."""
_ALIASES = {"pil": "PIL", "pyav": "av", "opencv": "cv2", "beautiful": "bs4", "jinja": "jinja2", "protobuf": "google"}
"""Names to import, where the libraries' sentences say another."""
_SENTENCES = (
    re.compile(r"requires? (?:the )?`?(?:🤗 )?([A-Za-z][\w-]*)`?(?: library|:| to be installed)"),
    re.compile(r"`([A-Za-z][\w-]*)` is required"),
    re.compile(r"No module named '([\w]+)"),
    re.compile(r"The '([A-Za-z][\w-]*)[^']*' distribution was not found"),
    re.compile(r"pip install (?:-U )?`?'?([A-Za-z][\w-]*)"),
)
"""How the libraries say which package they miss."""


@contextmanager
def told(purpose: str) -> Iterator[None]:
    """Raise `MissingExtra` in place of an error that a missing or broken package has caused."""
    try:
        yield
    except TriptychError:
        raise
    except Exception as error:
        if (missing := explained(error, purpose)) is None:
            raise
        raise missing from error


def explained(error: BaseException, purpose: str) -> MissingExtra | None:
    """The error as one of a package, where a package has caused it."""
    links = list(chain_of(error))
    for link in links:
        name = named_in(link)
        if name is not None and not is_installed(name):
            return missing_extra(name, purpose)
    for link in reversed(links):  # causes first
        if (broken := _being_imported(link)) is not None:
            reason = " ".join(str(link).split()) or type(link).__name__
            return missing_extra(broken, purpose, f"it can't be imported: {reason}")
    return None


def missing_extra(package: str, purpose: str, reason: str = "") -> MissingExtra:
    """The error for a package by the name that it is imported under, with our extra that brings it."""
    distribution = _DISTRIBUTIONS.get(package, package)
    names = (re.split(r"[^\w.-]", one, maxsplit=1)[0] for one in importlib.metadata.requires("triptych") or [])
    is_ours = _plain(distribution) in map(_plain, names)
    return MissingExtra(distribution, _OUR_EXTRA if is_ours else "", purpose, reason)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def named_in(error: BaseException) -> str | None:
    """The package that an ImportError is about."""
    if not isinstance(error, ImportError):
        return None
    if isinstance(error, ModuleNotFoundError) and re.fullmatch(r"[\w.-]+", error.name or ""):
        return _imported_as(str(error.name).partition(".")[0])
    said = f"{error} {error.name or ''}"
    found = (match[1] for sentence in _SENTENCES if (match := sentence.search(said)) is not None)
    return next((_imported_as(name) for name in found), None)


def _imported_as(said: str) -> str:
    """Libraries write names as their makers do: `SentencePiece`, `PyAv`."""
    plain = said.lower().replace("-", "_")
    return _ALIASES.get(plain, plain)


def is_installed(package: str) -> bool:
    """Whether a package of this name can be found."""
    if package in sys.modules:
        return True
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _being_imported(error: BaseException) -> str | None:
    """The package whose own code at the top of a module raised the error, or None."""
    traceback = error.__traceback__
    package = ""
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code.co_name == "<module>":
            package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        traceback = traceback.tb_next
    return package if package and package not in _OURS else None


@contextmanager
def loading(what: str, failed: str = "can't be loaded") -> Iterator[None]:
    """Raise `ModelInvalid` for any error, with `what` as the subject, for example "component 'vae' of /models/x/vae".

    Raises `MissingExtra` where a package has caused it.
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


def is_refusal(error: Exception) -> bool:
    """Whether a block said on purpose that a value can't be used."""
    if not isinstance(error, (ValueError, TypeError, UnboundLocalError)) or error.__traceback__ is None:
        return False
    innermost = error.__traceback__
    while innermost.tb_next is not None:
        innermost = innermost.tb_next
    module = str(innermost.tb_frame.f_globals.get("__name__", ""))
    if not module.startswith("diffusers.") or module.startswith("diffusers.models."):
        return False
    if isinstance(error, UnboundLocalError):
        return module.startswith("diffusers.modular_pipelines.")
    return innermost.tb_frame.f_code.co_code[innermost.tb_lasti] == _RAISE


def as_invalid_request(error: Exception, values: Mapping[str, object]) -> InvalidRequest:
    """The refusal in our words: the input that the sentence names first, its value unless it is text, the sentence.

    Texts of the caller that the sentence quotes are cut out, because it goes into logs and the job's record.
    """
    sentence = redact(" ".join(str(error).split()), texts_in(values))
    if isinstance(error, UnboundLocalError):
        return InvalidRequest("request", "a combination of inputs", f"one that diffusers covers ({sentence})")
    positions = {name: sentence.find(name) for name in values if name in sentence}
    said = str(error)
    texts = {name: value for name, value in values.items() if isinstance(value, str) and "prompt" not in name}
    quoted = next((name for name, value in texts.items() if value and value in said), "request")
    field = min(positions, key=lambda name: (positions[name], -len(name)), default=quoted)
    value = values.get(field, "a combination of inputs")
    is_public = field == "request" or isinstance(value, (bool, int, float, type(None)))
    shown = value if is_public else type(value).__name__
    return InvalidRequest(field, shown, f"what the pipeline takes; it says: {sentence}")
