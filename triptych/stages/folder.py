"""Cheap checks of a model's folder, so that a missing or truncated file is one sentence and not a traceback.

Only JSON files are read here; `weights` reads headers of safetensors files, `components` knows the files of a class.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from triptych.errors import ModelInvalid

INDEX_NAMES = ("modular_model_index.json", "model_index.json")
"""Files that make a folder a diffusers model, in the order in which diffusers looks for them."""

RECOMMENDATIONS_NAME = "triptych.json"
"""Optional file at the folder's root: `{"defaults": {input: value}, "frames_per_second": number, "preview": {...}}`."""
_OWN_KEYS = ("defaults", "frames_per_second", "preview")

JSON_BYTES_MAX = 64 << 20
"""Largest JSON file that is read: a tokenizer of 250,000 entries takes 30 MB."""

_POINTER = b"version https://git-lfs.github.com/spec/"
_NEVER_EMPTY = (".json", ".model", ".safetensors", ".jinja")
_UNFINISHED = (".incomplete", ".part", ".crdownload", ".aria2")
"""Suffixes that download tools and browsers give to unfinished files."""
_BOOK = ".metadata"
_SMALL = (".json", ".txt", ".model", ".jinja")
"""Configs and vocabularies. Weights have rules of their own, and nobody needs all their formats and variants."""


def folder_of(spec: Any) -> Path:
    """The folder of a component; for one of the hub there is none of this name."""
    return Path(spec.pretrained_model_name_or_path or "", spec.subfolder or "")


def place_of(spec: Any) -> str:
    """A component and where it comes from, for sentences."""
    return f"component {spec.name!r} of {'/'.join(filter(None, (spec.pretrained_model_name_or_path, spec.subfolder)))}"


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises `ModelInvalid` where it can't be read or isn't JSON."""
    check_whole(path)
    try:
        if path.stat().st_size > JSON_BYTES_MAX:
            raise ModelInvalid(f"{path} is larger than {JSON_BYTES_MAX} bytes; a JSON file was expected")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelInvalid(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelInvalid(f"{path} is not valid JSON (truncated?): {error}") from error


def check_index(folder: Path) -> None:
    """Raises `ModelInvalid` unless the folder exists and holds an index of a diffusers pipeline."""
    if not folder.is_dir():
        raise ModelInvalid(f"model folder {str(folder)!r} does not exist")
    for name in INDEX_NAMES:
        if (folder / name).is_file():
            index = read_json(folder / name)
            if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
                raise ModelInvalid(f"{folder / name} names no pipeline class: not a diffusers model")
            return
    raise ModelInvalid(f"{str(folder)!r} is not a diffusers model: it holds neither {' nor '.join(INDEX_NAMES)}")


def visible_files(folder: Path, suffix: str = "") -> list[Path]:
    """The files of a folder whose names end with `suffix`, without hidden ones such as `._x` of another system."""
    try:
        found = (path for path in folder.iterdir() if not path.name.startswith(".") and path.name.endswith(suffix))
        return sorted(path for path in found if not path.is_dir())
    except OSError as error:
        raise ModelInvalid(f"{str(folder)!r} can't be read: {error.strerror or error}") from error


def check_whole(path: Path, named_by: str = "") -> None:
    """Raises `ModelInvalid` for a file that isn't there, is empty, or stands for another one.

    `named_by` is the file that says that it is there.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except FileNotFoundError as error:
        if path.is_symlink():
            raise ModelInvalid(f"{path} is a link to {str(path.readlink())!r}, which isn't there") from error
        said = f"; {named_by} names it" if named_by else ""
        raise ModelInvalid(f"{path} is missing{said}") from error
    except OSError as error:
        raise ModelInvalid(f"{path} can't be read: {error.strerror or error}") from error
    if start == _POINTER:
        raise ModelInvalid(f"{path} is only a pointer of Git LFS: fetch the file itself with `git lfs pull`")
    if not start and path.suffix in _NEVER_EMPTY:
        raise ModelInvalid(f"{path} is empty (0 bytes), so it is not valid: its download has not ended")


def check_downloads(root: Path, subfolder: str = "") -> None:
    """Raises `ModelInvalid` where a download of a component has left what shows that it hasn't ended.

    The hub's own tool keeps books in `.cache/huggingface/download`: a file under way, and what has come whole.
    """
    folder = root / subfolder
    books = root / ".cache" / "huggingface" / "download" / subfolder
    for place in (folder, books):
        unfinished = [path for path in _files(place) if path.suffix in _UNFINISHED]
        if unfinished:
            raise ModelInvalid(f"{unfinished[0]} is of a download that has not ended: download the model again")
    for book in (path for path in _files(books) if path.name.endswith(_BOOK)):
        path = folder / book.name.removesuffix(_BOOK)
        if path.suffix in _SMALL and not path.exists():
            raise ModelInvalid(f"{path} is missing; {book} says that it was downloaded")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("._")) if folder.is_dir() else []


def read_recommendations(folder: Path) -> dict[str, Any]:
    """Defaults by name from the folder's `triptych.json`, `frames_per_second` among them; empty where there is none."""
    content = _read_own(folder)
    defaults = dict(content.get("defaults", {}))
    if "frames_per_second" in content:
        defaults["frames_per_second"] = content["frames_per_second"]
    return defaults


def read_preview(folder: Path) -> dict[str, Any] | None:
    """What the folder's `triptych.json` says of previews, see `preview_sources`; None where it says nothing."""
    content = _read_own(folder).get("preview")
    if content is None:
        return None
    keys = "'rgb_factors', 'rgb_bias'"
    if not isinstance(content, dict) or set(content) - {"rgb_factors", "rgb_bias"}:
        raise ModelInvalid(f"{folder / RECOMMENDATIONS_NAME}: 'preview' must be an object; known keys: {keys}")
    return content


def _read_own(folder: Path) -> dict[str, Any]:
    path = folder / RECOMMENDATIONS_NAME
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("defaults", {}), dict):
        raise ModelInvalid(f"{path} must hold an object with 'defaults', an object of values by input")
    if unknown := set(content) - set(_OWN_KEYS):
        known = ", ".join(map(repr, _OWN_KEYS))
        raise ModelInvalid(f"{path} has unknown keys {sorted(unknown)}; known: {known}")
    return content
