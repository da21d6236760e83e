"""`triptych backup`: a copy of a controller's state folder, taken while the controller runs.

The journal is copied first, as it stands at one moment, then the results that lie beside it. A result is stored before
the journal says so and never changes, so the copy has every result that its journal names; unless a finished job is
removed for its age in between, and then its result goes missing with it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sqlite3
import uuid
from pathlib import Path

from triptych.config import JOURNAL_FILE, RESULTS_FOLDER, ControllerConfig
from triptych.errors import InvalidRequest, SourceCorrupt
from triptych.limits import bytes_text
from triptych_client.terminal import visible


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the two folders."""
    parser.add_argument("target", metavar="FOLDER", help="the copy; must not exist yet")
    default = ControllerConfig.state
    parser.add_argument("--state", default=default, metavar="DIR", help="what to copy (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Copy, and say what was copied."""
    print(visible(f"{args.target}: {back_up(Path(args.state), Path(args.target))}"))


def back_up(state: Path, target: Path) -> str:
    """Copy a state folder to `target`, which appears only when it is complete; what was copied, in words.

    Raises InvalidRequest for a folder without a journal or a target that can't be made, SourceCorrupt for a journal
    that can't be read, OSError where a disk fails.
    """
    journal = state / JOURNAL_FILE
    if not journal.is_file():
        accepted = f"the state folder of a controller, which holds {JOURNAL_FILE}; pg_dump copies one in PostgreSQL"
        raise InvalidRequest("state", str(state), accepted)
    if not _is_free(target) or not target.absolute().parent.is_dir():
        raise InvalidRequest("target", str(target), "a name that is free, in a folder that exists")
    if target.absolute().parent.resolve().is_relative_to((state / RESULTS_FOLDER).resolve()):
        raise InvalidRequest(
            "target", str(target), "a name outside of the results, which would hold a copy of themselves"
        )
    part = target.absolute().with_name(f".triptych-{uuid.uuid4().hex}.part")
    part.mkdir(mode=0o700)
    try:
        _copy_journal(journal, part / JOURNAL_FILE)
        count, size_bytes = _copy_results(state / RESULTS_FOLDER, part / RESULTS_FOLDER)
        journal_bytes = (part / JOURNAL_FILE).stat().st_size
        os.sync()  # the names, too, before the folder gets its own
        part.rename(target)
    except BaseException:
        shutil.rmtree(part)
        raise
    return f"journal {bytes_text(journal_bytes)}, {count} results {bytes_text(size_bytes)}"


def _is_free(target: Path) -> bool:
    """Whether nothing is there and something may be; false for a name that is too long."""
    try:
        target.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def _copy_journal(journal: Path, copy: Path) -> None:
    """By SQLite itself, which copies one moment's content and doesn't block the controller."""
    try:
        with (
            contextlib.closing(sqlite3.connect(f"{journal.absolute().as_uri()}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
            (answer,) = target.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        raise SourceCorrupt(f"the journal {journal} can't be copied: {error}") from error
    if answer != "ok":
        raise SourceCorrupt(f"the journal {journal} is damaged: {answer}")


def _copy_results(results: Path, copy: Path) -> tuple[int, int]:
    """Every stored file; those under temporary names aren't stored yet. Returns how many and how large."""
    count = size_bytes = 0
    for file in sorted(results.rglob("*")):
        if file.name.startswith(".") or not file.is_file():
            continue
        target = copy / file.relative_to(results)
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # a job that was removed meanwhile
            shutil.copy2(file, target)
            size_bytes += target.stat().st_size
            count += 1
    return count, size_bytes
