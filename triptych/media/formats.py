"""The output formats. A new one needs an entry here and a function in the table `ENCODERS` of `encoding`."""

from __future__ import annotations

from typing import NamedTuple


class Format(NamedTuple):
    """An output format. Its name in a request is also the suffix of its files."""

    media_type: str
    is_for_videos: bool = False
    """Whether it holds videos only."""


FORMATS = {
    "mp4": Format("video/mp4", is_for_videos=True),
    "gif": Format("image/gif", is_for_videos=True),
    "png": Format("image/png"),
    "npy": Format("application/x-npy"),
}
