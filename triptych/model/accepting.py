"""Whether a value is one that an input takes, by the input's description; and what is to be made of its files."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from triptych.errors import InvalidRequest
from triptych.media import tensor_files
from triptych.media.decoding.headers import AUDIO, IMAGE, VIDEO, WANTED_FORMATS, File, format_of, is_animated
from triptych.media.tensor_files import Tensor
from triptych.model.description import MEDIA_KINDS, accepted_names
from triptych.v1 import job_pb2, model_pb2
from triptych.v1.job_pb2 import Media, TensorFile
from triptych.v1.model_pb2 import InputDescription

Kind: TypeAlias = "model_pb2.InputKind.ValueType"

_PLAIN: dict[int, tuple[tuple[type, ...], str]] = {
    model_pb2.INPUT_KIND_TEXT: ((str,), "text"),
    model_pb2.INPUT_KIND_INTEGER: ((int,), "a whole number"),
    model_pb2.INPUT_KIND_NUMBER: ((int, float), "a finite number"),
    model_pb2.INPUT_KIND_BOOLEAN: ((bool,), "true or false"),
    model_pb2.INPUT_KIND_LIST: ((list,), "a list"),
    model_pb2.INPUT_KIND_MAPPING: ((dict,), "a mapping"),
    model_pb2.INPUT_KIND_OBJECT: ((dict,), "an object"),
}
_FILE_KINDS: dict[int, tuple[str, str]] = {
    model_pb2.INPUT_KIND_IMAGE: (IMAGE, "a picture"),
    model_pb2.INPUT_KIND_VIDEO: (VIDEO, "a video"),
    model_pb2.INPUT_KIND_AUDIO: (AUDIO, "sound"),
}
_WANTED = {job_pb2.MEDIA_KIND_IMAGE: IMAGE, job_pb2.MEDIA_KIND_VIDEO: VIDEO, job_pb2.MEDIA_KIND_AUDIO: AUDIO}


def accepted(described: InputDescription, value: Any, place: str) -> Any:
    """The value as the pipeline is to get it: its files as `File` and `Tensor`, its whole numbers as int.

    Raises InvalidRequest, with the place within the value, for anything that the input doesn't take.
    """
    if described.kind == model_pb2.INPUT_KIND_INTERNAL:
        raise InvalidRequest(place, shown(value), described.not_given_reason or "nothing; this input is internal")
    if value is None:
        return None
    arity = arity_of(described)
    if arity == model_pb2.INPUT_ARITY_ONE or described.kind == model_pb2.INPUT_KIND_LIST:
        return _item(described, value, place)
    if isinstance(value, list):
        return [_item(described, item, f"{place}[{number}]") for number, item in enumerate(value)]
    if arity == model_pb2.INPUT_ARITY_LIST and not place.startswith("media."):
        raise InvalidRequest(place, shown(value), "a list; this input takes one")
    one = _item(described, value, place)
    return [one] if arity == model_pb2.INPUT_ARITY_LIST else one


def arity_of(described: InputDescription) -> model_pb2.InputArity.ValueType:
    """Whether an input takes one value or a list. Older workers say no more than that several files may come."""
    if described.arity:
        return described.arity
    if described.kind in MEDIA_KINDS and described.name.endswith("images"):
        return model_pb2.INPUT_ARITY_LIST
    return model_pb2.INPUT_ARITY_ONE_OR_LIST if described.takes_several else model_pb2.INPUT_ARITY_ONE


def _item(described: InputDescription, value: Any, place: str) -> Any:
    """One value: of the input's kind, or of another that it takes as well."""
    kinds = list(described.item_kinds) or [described.kind]
    if value is None:
        return None
    if isinstance(value, Media):
        return _media(kinds, described, value, place)
    if isinstance(value, TensorFile):
        return _tensor(kinds, described, value, place)
    if isinstance(value, list) and _takes_frames(kinds, value):
        image = [model_pb2.INPUT_KIND_IMAGE]
        frames = [_media(image, described, frame, f"{place}[{number}]") for number, frame in enumerate(value)]
        return [file._replace(is_frame=True) for file in frames]
    if described.kind in (model_pb2.INPUT_KIND_LIST, model_pb2.INPUT_KIND_MAPPING):
        return _container(described, value, place)
    if model_pb2.INPUT_KIND_UNSPECIFIED in kinds:
        return _any(value, place)
    plain = [_PLAIN[kind] for kind in kinds if kind in _PLAIN]
    for types, _sentence in plain:
        if isinstance(value, types) and (bool in types or not isinstance(value, bool)):
            if described.choices and isinstance(value, str) and value not in described.choices:
                raise InvalidRequest(place, value, accepted_names(value, described.choices))
            return _object(described, value, place) if isinstance(value, dict) else _any(value, place)
    raise InvalidRequest(place, shown(value), _sentence_of(kinds))


def _container(described: InputDescription, value: Any, place: str) -> Any:
    """A list or a mapping, whose items are of `item_kinds`, or of any kind where none are said."""
    types, sentence = _PLAIN[described.kind]
    if type(value) not in types:
        raise InvalidRequest(place, shown(value), sentence)
    kinds = described.item_kinds or [model_pb2.INPUT_KIND_UNSPECIFIED]
    item = InputDescription(name=described.name, kind=kinds[0], item_kinds=kinds, fields=described.fields)
    if isinstance(value, list):
        return [_item(item, part, f"{place}[{number}]") for number, part in enumerate(value)]
    return {name: _item(item, part, f"{place}.{name}") for name, part in value.items()}


def _object(described: InputDescription, value: dict[str, Any], place: str) -> dict[str, Any]:
    if not described.fields:
        return {name: _any(one, f"{place}.{name}") for name, one in value.items()}
    known = {one.name: one for one in described.fields}
    for name in value:
        if name not in known:
            raise InvalidRequest(f"{place}.{name[:80]}", shown(value[name]), accepted_names(name, known))
    for name, one in known.items():
        if one.required and name not in value:
            raise InvalidRequest(f"{place}.{name}", None, f"{_sentence_of(list(one.item_kinds) or [one.kind])}")
    return {name: accepted(known[name], one, f"{place}.{name}") for name, one in value.items()}


def _any(value: Any, place: str) -> Any:
    """A value of any kind; files are taken for what they are."""
    if isinstance(value, Media):
        return _media([], None, value, place)
    if isinstance(value, TensorFile):
        return _tensor([], None, value, place)
    if isinstance(value, list):
        return [_any(one, f"{place}[{number}]") for number, one in enumerate(value)]
    if isinstance(value, dict):
        return {name: _any(one, f"{place}.{name}") for name, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest(place, value, "finite numbers")
    return value


def _takes_frames(kinds: Sequence[Kind], value: list[Any]) -> bool:
    """Whether a list is a video in pictures."""
    return model_pb2.INPUT_KIND_VIDEO in kinds and bool(value) and all(isinstance(one, Media) for one in value)


def _media(kinds: Sequence[Kind], described: InputDescription | None, media: Media, place: str) -> File:
    if media.name and place.startswith("inputs."):
        raise InvalidRequest(f"{place}.name", media.name, "nothing; its place in the tree names it")
    if not media.data and not media.url:  # a URL's bytes are put in once all else is checked
        raise InvalidRequest(place, b"", "the bytes of a file")
    options = [_FILE_KINDS[kind][0] for kind in kinds if kind in _FILE_KINDS]
    if kinds and not options and model_pb2.INPUT_KIND_UNSPECIFIED not in kinds:
        raise InvalidRequest(place, "a file", _sentence_of(kinds))
    said = _WANTED.get(media.kind) if media.kind else None
    if media.kind and (said is None or (options and said not in options)):
        shown = said or media.kind
        raise InvalidRequest(f"{place}.kind", shown, f"{' or '.join(options or _WANTED.values())}, or nothing")
    looks = _kind_by_start(media.data)
    wanted = said or (looks if not options or looks in options else options[0])
    name = place.partition(".")[2] or place
    return File(
        name,
        wanted,
        media.data,
        takes_alpha=described is not None and described.takes_alpha and wanted == IMAGE,
        sample_rate=described.sample_rate_hz if described is not None and wanted == AUDIO else 0,
        field=place,
    )


def _kind_by_start(data: bytes) -> str:
    """What a file is, by its first bytes. A GIF is a video where both are taken, and so is a WebP or PNG that moves."""
    name = format_of(data)
    if name in WANTED_FORMATS[IMAGE] and name != "gif":
        return VIDEO if name in WANTED_FORMATS[VIDEO] and _moves(data, name) else IMAGE
    return next((kind for kind in (VIDEO, AUDIO) if name in WANTED_FORMATS[kind]), IMAGE)


def _moves(data: bytes, name: str) -> bool:
    try:
        return is_animated(data, name)
    except struct.error:
        return False  # it is refused when it is decoded


def _tensor(kinds: Sequence[Kind], described: InputDescription | None, file: TensorFile, place: str) -> Tensor:
    open_kinds = (model_pb2.INPUT_KIND_TENSOR, model_pb2.INPUT_KIND_UNSPECIFIED)
    if kinds and not any(kind in open_kinds for kind in kinds):
        raise InvalidRequest(place, "a tensor", _sentence_of(kinds))
    try:
        found = tensor_files.read(file.data)
    except ValueError as error:
        raise InvalidRequest(place, f"{len(file.data)} bytes", f"the bytes of a safetensors file ({error})") from error
    names = f"{len(found)} tensors: {', '.join(sorted(found)[:8])}"
    if file.tensor not in found and (file.tensor or len(found) != 1):
        raise InvalidRequest(f"{place}.tensor", file.tensor, f"one of the file's {names}")
    tensor = found[file.tensor] if file.tensor in found else next(iter(found.values()))
    _check_tensor(described, tensor, place)
    return tensor


def _check_tensor(described: InputDescription | None, tensor: Tensor, place: str) -> None:
    shown = tensor_files.words(tensor.dtype, tensor.shape)
    if described is not None and described.tensor_dtypes and tensor.dtype not in described.tensor_dtypes:
        raise InvalidRequest(place, shown, f"the dtype {' or '.join(described.tensor_dtypes)}")
    sizes = list(described.tensor_shape) if described is not None else []
    fits = len(sizes) == len(tensor.shape) and all(
        not said.isdecimal() or int(said) == size for said, size in zip(sizes, tensor.shape, strict=True)
    )
    if sizes and not fits:
        raise InvalidRequest(place, shown, f"the shape [{', '.join(sizes)}]")
    if not tensor_files.is_finite(tensor):
        raise InvalidRequest(place, f"{shown} with NaN or infinity", "finite numbers")


def _sentence_of(kinds: Sequence[Kind]) -> str:
    """What values of these kinds are, in words."""
    words = []
    for kind in kinds:
        if kind in _PLAIN:
            words.append(_PLAIN[kind][1])
        elif kind in _FILE_KINDS:
            words.append(_FILE_KINDS[kind][1] + ", as a file in media or inputs")
        elif kind == model_pb2.INPUT_KIND_TENSOR:
            words.append("a tensor, as safetensors in inputs")
    return " or ".join(words) or "nothing"


def shown(value: Any) -> object:
    """A value for a message: as it is, but for files, and what holds them."""
    if isinstance(value, Media | TensorFile):
        return "a file"
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if len(parts) > 8 or any(shown(part) is not part for part in parts):
        return "an object" if isinstance(value, dict) else "a list"
    return value


def files_in(value: Any) -> Iterator[File]:
    """The files of an accepted value, in the order of the tree."""
    if isinstance(value, File):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from files_in(one)
    elif isinstance(value, list):
        for item in value:
            yield from files_in(item)


def replaced(value: Any, by: Callable[[File], Any]) -> Any:
    """The value with each file replaced."""
    if isinstance(value, File):
        return by(value)
    if isinstance(value, dict):
        return {name: replaced(one, by) for name, one in value.items()}
    return [replaced(one, by) for one in value] if isinstance(value, list) else value


def is_media(described: InputDescription) -> bool:
    """Whether the input takes files in `media`."""
    return bool({described.kind, *described.item_kinds}.intersection(MEDIA_KINDS))


def in_whole_numbers(value: Any) -> Any:
    """The value with whole doubles as int, at any depth: a Struct has no others."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [in_whole_numbers(one) for one in value]
    if isinstance(value, Mapping):
        return {name: in_whole_numbers(one) for name, one in value.items()}
    return value
