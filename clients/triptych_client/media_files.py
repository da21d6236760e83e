"""Files of `media`: bytes, paths, folders of numbered pictures, URLs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from triptych.errors import InvalidRequest
from triptych.v1.job_pb2 import Media as MediaMessage
from triptych_client.trees import read_file

MediaFile = bytes | str | Path
"""The bytes of a picture, video or sound, the path of one, or its URL, which the controller fetches if it may. A folder
stands for the pictures in it, in the order of the numbers in their names: the frames of a video."""

Media = Mapping[str, MediaFile | Sequence[MediaFile]]
"""Files by the name of the input that takes them."""

_NUMBER = re.compile(r"\d+")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def messages(media: Media) -> Iterator[MediaMessage]:
    """Yield the files as they are sent. Raises InvalidRequest, with the input's name, for one that can't be read."""
    for name, value in media.items():
        for file in [value] if isinstance(value, bytes | str | Path) else value:
            if isinstance(file, bytes):
                yield MediaMessage(name=name, data=file)
            elif isinstance(file, str) and _URL.match(file):
                yield MediaMessage(name=name, url=file)
            else:
                for path in _files(Path(file), f"media.{name}"):
                    yield MediaMessage(name=name, data=read_file(path, f"media.{name}"))


def path_or_url(text: str) -> str | Path:
    """What a flag says: a URL as it is, anything else as a path."""
    return text if _URL.match(text) else Path(text)


def _files(path: Path, place: str) -> list[Path]:
    """The file, or those of a folder by their last number: `frame-9.png` comes before `frame-10.png`."""
    try:
        if not path.is_dir():
            return [path]
        found = sorted(one for one in path.iterdir() if one.is_file() and not one.name.startswith("."))
    except (OSError, ValueError) as error:
        raise InvalidRequest(place, str(path), f"a readable file or folder ({error})") from error
    numbers = {one: [int(number) for number in _NUMBER.findall(one.stem)] for one in found}
    if not found or not all(numbers.values()):
        unnumbered = next((one.name for one in found if not numbers[one]), "nothing")
        raise InvalidRequest(place, str(path), f"a folder of pictures with numbers in their names; it has {unnumbered}")
    last = [numbers[one][-1] for one in found]
    if len(set(last)) < len(last):
        raise InvalidRequest(place, str(path), "a folder of pictures of which no two have one number")
    return sorted(found, key=lambda one: numbers[one][-1])
