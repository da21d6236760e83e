"""The latest preview of a result, in a file beside it while it is made."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from triptych_client.result_files import check_free, write_file


class PreviewFile:
    """Use as a context manager; at its end the file is removed. A file that another program made stays."""

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(f"{output.stem}.preview.png")
        self._is_ours = False

    def check(self) -> None:
        """Raises InvalidRequest where it can't be made."""
        check_free(self.path, "preview")

    def write(self, png: bytes) -> None:
        """Show this picture. Raises FileExistsError where another program has made such a file."""
        write_file(self.path, png, overwrites=self._is_ours)
        self._is_ours = True

    def __enter__(self) -> PreviewFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_ours:
            self.path.unlink(missing_ok=True)
