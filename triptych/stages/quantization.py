"""Quantization of one component: diffusers' or transformers' own configuration, by its name, and GGUF files."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triptych.errors import InvalidRequest, MissingExtra, TriptychError
from triptych.means.options import ComponentMeans
from triptych.means.published import BACKEND_PACKAGES
from triptych.means.tables import accepted_keys
from triptych.stages import digests
from triptych.stages.library import ModelMixin, diffusers, transformers
from triptych.stages.library_errors import said

_MODULES = {"optimum-quanto": "optimum.quanto"}
"""Names to import, where they differ from the names to install."""
_IN_OUR_EXTRA = ("torchao", "optimum-quanto", "gguf")


def configuration(path: str, spec: Any, table: Mapping[str, Any]) -> Any:
    """The library's configuration object for a component: diffusers' for its own models, else transformers'.

    Raises MissingExtra where the backend isn't installed, InvalidRequest where the library refuses an option.
    """
    options = dict(table)
    name = options.pop("config")
    _check_installed(name, f"{path}.config {name}")
    library = diffusers if issubclass(spec.type_hint, ModelMixin) else transformers
    cls = getattr(library, name, None)
    if cls is None:
        raise InvalidRequest(f"{path}.config", name, f"one that {library.__name__} has for {spec.type_hint.__name__}")
    try:
        if "quant_type" in options:
            options["quant_type"] = _torchao_type(f"{path}.quant_type", options["quant_type"])
        if name == "QuantoConfig" and library is transformers and "weights_dtype" in options:
            options["weights"] = options.pop("weights_dtype")  # transformers' word for it
        return cls(**_with_dtypes(options))
    except TriptychError:
        raise
    except (ValueError, TypeError, ImportError, AttributeError) as error:
        raise InvalidRequest(path, dict(table), f"options that {name} takes ({said(error)})") from error


def single_file(path: str, spec: Any, means: ComponentMeans, dtype: Any) -> Any:
    """A model from a GGUF file, with the configuration of the model's folder. Raises InvalidRequest."""
    file = Path(means.gguf)
    if not file.is_file():
        raise InvalidRequest(f"{path}.gguf", means.gguf, "a file that exists")
    if not hasattr(spec.type_hint, "from_single_file"):
        raise InvalidRequest(f"{path}.gguf", means.gguf, f"nothing: {spec.type_hint.__name__} has no from_single_file")
    assert means.quantization is not None, "checked with the table"
    return spec.type_hint.from_single_file(
        str(file),
        config=spec.pretrained_model_name_or_path,
        subfolder=spec.subfolder,
        quantization_config=configuration(f"{path}.quantization", spec, means.quantization),
        dtype=dtype,
        disable_mmap=False,
    )


def identity(means: ComponentMeans) -> dict[str, str]:
    """What decides bits beside the options: the backend's version, and the bytes of a GGUF file."""
    found = {}
    if means.quantization is not None:
        package = BACKEND_PACKAGES[means.quantization["config"]]
        found["quantization.package"] = f"{package} {importlib.metadata.version(package)}"
    if means.gguf:
        found["gguf"] = digests.file_digest(Path(means.gguf))
    return found


def _check_installed(name: str, purpose: str) -> None:
    package = BACKEND_PACKAGES[name]
    module = _MODULES.get(package, package)
    try:
        is_there = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        is_there = False
    if not is_there:
        raise MissingExtra(package, "quantization" if package in _IN_OUR_EXTRA else "", purpose)


def _torchao_type(path: str, value: Any) -> Any:
    """An object of torchao's: a class by name, or a table with its `type` and arguments."""
    import torchao.quantization as torchao  # type: ignore[import-not-found,import-untyped,unused-ignore]

    arguments = dict(value) if isinstance(value, Mapping) else {"type": value}
    name = arguments.pop("type", None)
    known = [one for one in dir(torchao) if one.endswith("Config")]
    if name not in known:
        raise InvalidRequest(path, value, accepted_keys(str(name), known).replace("keys", "classes of torchao", 1))
    return getattr(torchao, name)(**_with_dtypes(arguments))


def _with_dtypes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with torch's own dtypes in place of their names, where a name says that it is one."""
    import torch

    return {
        name: getattr(torch, value, value) if name.endswith("dtype") and name != "weights_dtype" else value
        for name, value in options.items()
    }
