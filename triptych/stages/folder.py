"""Cheap checks of a model's folder, so that what is missing or cut short is one sentence and not a traceback.

Only JSON files and the headers of safetensors files are read; no weights.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from triptych.errors import ModelInvalid

INDEX_NAMES = ("modular_model_index.json", "model_index.json")
"""Files that make a folder a diffusers model, in the order in which diffusers looks for them."""

RECOMMENDATIONS_NAME = "triptych.json"
"""Optional file at the folder's root: `{"defaults": {input: value}, "frames_per_second": number}`."""

JSON_BYTES_MAX = 64 << 20
"""Largest JSON file that is read: a tokenizer of 250,000 entries takes 30 MB."""

HEADER_BYTES_MAX = 100 << 20
"""Largest safetensors header, as the format's own reader has it."""

SAFETENSORS_SUFFIX = ".safetensors"
_PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Weights that Python's pickle wrote: to read such a file may run what somebody put into it."""
_FILE_SUFFIXES = (SAFETENSORS_SUFFIX, ".gguf", *_PICKLED_SUFFIXES)
"""Names with these ends are those of single files, for which the libraries have other ways to load."""


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises `ModelInvalid` where it can't be read or isn't JSON."""
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


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: dtype, shape and byte range of each tensor by name.

    Layout (safetensors format): u64 little-endian length of the header, the header as JSON, the tensors' bytes.
    Raises `ModelInvalid` where the file is shorter than its header says.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        header_bytes = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else HEADER_BYTES_MAX + 1
        if header_bytes > min(HEADER_BYTES_MAX, size_bytes - 8):
            raise ModelInvalid(f"{path} is not a safetensors file, or truncated")
        try:
            header: dict[str, Any] = json.loads(file.read(header_bytes))
        except ValueError as error:
            raise ModelInvalid(f"{path} is not a safetensors file: {error}") from error
    header.pop("__metadata__", None)
    end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    if size_bytes < 8 + header_bytes + end:
        raise ModelInvalid(f"{path} is truncated: {size_bytes} bytes instead of {8 + header_bytes + end}")
    return header


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component, checked against their headers and the index of shards.

    Raises `ModelInvalid` where a shard is missing, a file is truncated, or the index names what is no safetensors file
    of this folder. Weights in another format give an empty list.
    """
    for index in sorted(folder.glob("*.safetensors.index.json")):
        for name in sorted(set(map(str, read_json(index).get("weight_map", {}).values()))):
            if not name.endswith(SAFETENSORS_SUFFIX) or Path(name).name != name:
                raise ModelInvalid(f"{index} names the shard {name!r}; only *{SAFETENSORS_SUFFIX} beside it are loaded")
            if not (folder / name).is_file():
                raise ModelInvalid(f"{folder / name} is missing; {index.name} names it")
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        read_header(file)
    return files


def check_component(folder: Path, name: str, *, weights: bool) -> None:
    """Raises `ModelInvalid` where the folder of a component is missing, or (for models) holds no whole weights."""
    if not folder.is_dir():
        raise ModelInvalid(f"component {name!r} is missing: no folder {str(folder)!r}")
    for file in sorted(folder.glob("*config.json")):
        read_json(file)
    if not weights:
        return
    if not (folder / "config.json").is_file():
        raise ModelInvalid(f"component {name!r} has no config.json in {str(folder)!r}")
    check_weights(folder, name)


def check_source(source: str, subfolder: str, name: str) -> None:
    """Raises `ModelInvalid` for a component whose weights would not be read from safetensors.

    What lies on the hub is looked for there; the libraries are then told to take safetensors only.
    """
    folder = Path(source, subfolder)
    if folder.is_dir():
        check_weights(folder, name)
    elif Path(source).suffix.lower() in _FILE_SUFFIXES:
        raise ModelInvalid(f"component {name!r} names the file {source!r}; a folder or a hub id is expected")


def check_weights(folder: Path, name: str) -> None:
    """Raises `ModelInvalid` where a folder holds no whole safetensors weights."""
    if weight_files(folder):
        return
    pickled = sorted(file for file in folder.iterdir() if file.suffix.lower() in _PICKLED_SUFFIXES)
    if pickled:
        raise ModelInvalid(
            f"component {name!r} has its weights in {str(pickled[0])!r}, which can hold code; only safetensors are "
            "loaded: convert it where you trust it, with save_pretrained(..., safe_serialization=True)"
        )
    raise ModelInvalid(f"component {name!r} has no weights in {str(folder)!r}")


def read_recommendations(folder: Path) -> dict[str, Any]:
    """Defaults by name from the folder's `triptych.json`, `frames_per_second` among them; empty where there is none."""
    path = folder / RECOMMENDATIONS_NAME
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("defaults", {}), dict):
        raise ModelInvalid(f"{path} must hold an object with 'defaults', an object of values by input")
    if unknown := set(content) - {"defaults", "frames_per_second"}:
        raise ModelInvalid(f"{path} has unknown keys {sorted(unknown)}; known: 'defaults', 'frames_per_second'")
    defaults = dict(content.get("defaults", {}))
    if "frames_per_second" in content:
        defaults["frames_per_second"] = content["frames_per_second"]
    return defaults
