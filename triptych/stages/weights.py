"""The safetensors files of a component's folder: which belong together, and whether they are whole.

Names are `BASE.safetensors`, or `BASE-00001-of-00002.safetensors` with an index beside them, and with a variant's name
(`fp16`) behind the base or before the end. Only headers are read. Hidden files, such as `._model.safetensors` of
another system, don't count.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from triptych.errors import ModelInvalid
from triptych.media.tensor_files import HEADER_BYTES_MAX, LENGTH_BYTES, parse_header
from triptych.stages.folder import check_whole, folder_of, read_json, visible_files

WEIGHTS_SUFFIX = ".safetensors"
INDEX = ".safetensors.index"
BASES = ("diffusion_pytorch_model", "model")
"""Names under which diffusers' and transformers' models look for their weights."""
_PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Weights written by Python's pickle: reading such a file may run code that somebody put into it."""
_FILE_SUFFIXES = (WEIGHTS_SUFFIX, ".gguf", *_PICKLED_SUFFIXES)
"""Suffixes of single files, which the libraries load in other ways."""
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=\.|$)")
_COUNT_MAX = 10_000
"""More shards than any model has: a name that says more is not counted out."""


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: dtype, shape and byte range of each tensor by name.

    Raises `ModelInvalid` where the file can't be read or is shorter than its header says.
    """
    check_whole(path)
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if header_bytes > min(HEADER_BYTES_MAX, size_bytes - LENGTH_BYTES):
                raise ModelInvalid(f"{path} is not a safetensors file, or truncated ({size_bytes} bytes)")
            header = parse_header(file.read(header_bytes))
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except OSError as error:
        raise ModelInvalid(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelInvalid(f"{path} is not a safetensors file: {error}") from error
    expected_bytes = LENGTH_BYTES + header_bytes + end
    if size_bytes != expected_bytes:
        what = "truncated" if size_bytes < expected_bytes else "too long"
        raise ModelInvalid(f"{path} is {what}: {size_bytes} bytes instead of {expected_bytes}")
    return header


def weight_files(folder: Path, variant: str = "") -> list[Path]:
    """The safetensors files of a component, of a variant or of none, checked against their headers and their index.

    Raises `ModelInvalid` where a shard or the index is missing, a file is truncated, or the index names something
    else than a safetensors file of this folder. Weights in another format, or of other variants, give an empty list.
    """
    files = [
        file for file in visible_files(folder, WEIGHTS_SUFFIX) if _named(file) in {(base, variant) for base in BASES}
    ]
    headers = {file.name: read_header(file) for file in files}
    indexed: set[str] = set()
    for index in (file for file in visible_files(folder, ".json") if INDEX in file.name):
        base, its_variant = _named(index)
        if base in BASES and its_variant == variant:
            _check_index(index, headers)
            indexed.add(base)
    for file in files:
        _check_shard(file, headers, has_index=_named(file)[0] in indexed)
    return files


def variants(folder: Path) -> list[str]:
    """The variants of which a component has weights, whole or not."""
    files = visible_files(folder, WEIGHTS_SUFFIX)
    return sorted({variant for base, variant in map(_named, files) if base in BASES and variant})


def check_weights(folder: Path, name: str, variant: str = "") -> None:
    """Raises `ModelInvalid` where a folder holds no whole safetensors weights."""
    if weight_files(folder, variant):
        return
    if found := [one for one in variants(folder) if one != variant]:
        raise ModelInvalid(
            f"component {name!r} has only weights of the variant {' and '.join(map(repr, found))} in {str(folder)!r}: "
            f"start with --variant {found[0]}"
        )
    pickled = sorted(file for file in visible_files(folder) if file.suffix.lower() in _PICKLED_SUFFIXES)
    if pickled:
        raise ModelInvalid(
            f"component {name!r} has its weights in {str(pickled[0])!r}, which can hold code; only safetensors are "
            "loaded: convert it where you trust it, with save_pretrained(..., safe_serialization=True)"
        )
    expected = " or ".join(f"{base}{WEIGHTS_SUFFIX}" for base in BASES)
    raise ModelInvalid(f"component {name!r} has no weights in {str(folder)!r}: {expected} is missing")


def check_source(spec: Any) -> None:
    """Raises `ModelInvalid` for a component whose weights would not be read from safetensors.

    What lies on the hub is looked for there; the libraries are then told to take safetensors only.
    """
    source = spec.pretrained_model_name_or_path
    folder = folder_of(spec)
    if folder.is_dir():
        check_weights(folder, spec.name, spec.variant or "")
    elif Path(source).suffix.lower() in _FILE_SUFFIXES:
        raise ModelInvalid(f"component {spec.name!r} names the file {source!r}; a folder or a hub id is expected")


def _named(file: Path) -> tuple[str, str]:
    """Base and variant of a weight file or an index, by its name."""
    stem = file.name.replace(INDEX, "").removesuffix(".json").removesuffix(WEIGHTS_SUFFIX)
    base, _, variant = _SHARD.sub("", stem).partition(".")
    return base, variant


def _check_index(index: Path, headers: dict[str, dict[str, Any]]) -> None:
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise ModelInvalid(f"{index} has no weight_map: not an index of shards")
    for name in sorted(set(map(str, places.values()))):
        if not name.endswith(WEIGHTS_SUFFIX) or Path(name).name != name:
            raise ModelInvalid(f"{index} names the shard {name!r}; only *{WEIGHTS_SUFFIX} beside it are loaded")
        if name not in headers:
            check_whole(index.parent / name, named_by=index.name)
            headers[name] = read_header(index.parent / name)
    for tensor, name in places.items():
        if tensor not in headers[name]:
            raise ModelInvalid(f"{index.parent / name} lacks the tensor {tensor!r} that {index.name} says is there")


def _check_shard(file: Path, headers: dict[str, dict[str, Any]], *, has_index: bool) -> None:
    found = _SHARD.search(file.name)
    if found is None:
        return
    base, variant = _named(file)
    index = file.with_name(f"{base}{INDEX}{'.' if variant else ''}{variant}.json")
    is_alone = not any(_SHARD.search(name) is None and _named(file.with_name(name))[0] == base for name in headers)
    if not has_index and is_alone:
        raise ModelInvalid(f"{index} is missing; {file.name} is a shard")
    for number in range(1, min(int(found[2]), _COUNT_MAX) + 1 if has_index else 0):
        name = file.name.replace(found[0], f"-{number:05d}-of-{found[2]}")
        if name not in headers:
            raise ModelInvalid(f"{file.with_name(name)} is missing; {file.name} is another shard of the same weights")
