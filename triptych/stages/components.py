"""Which files a component of a local folder needs, and which variant of its weights is loaded.

Some libraries silently do without a missing file and give other results, for example without a tokenizer's
configuration. So the files of a class are looked for before anything is loaded (`check_component`), and then those that
only some roles' code uses (`check_uses`): without a chat template every job would fail, without its settings of text
generation a language model would write something else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from triptych.errors import ModelInvalid
from triptych.stages import reached_code
from triptych.stages.folder import check_downloads, check_whole, folder_of, read_json, visible_files
from triptych.stages.handoff import walk
from triptych.stages.library import ModularPipelineBlocks
from triptych.stages.pipelines import Components
from triptych.stages.weights import check_weights, variants

_VOCABULARIES = (
    *("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model"),
    "tekken.json",
)
"""Files with the vocabulary of a tokenizer whose class is known only when it is loaded."""
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Files with the settings of processors of pictures, videos and sound."""
_GENERATION = "generation_config.json"


def check_component(spec: Any, *, weights: bool) -> None:
    """Raises `ModelInvalid` where a component of a local folder isn't whole. `weights` says whether it is a model."""
    name = spec.name
    folder = folder_of(spec)
    if not folder.is_dir():
        raise ModelInvalid(f"component {name!r} is missing: no folder {str(folder)!r}")
    check_downloads(Path(spec.pretrained_model_name_or_path), spec.subfolder or "")
    for file in visible_files(folder):
        if file.suffix == ".json":
            read_json(file)
        elif file.suffix != ".safetensors":
            check_whole(file)
    present = {file.name for file in visible_files(folder)}
    for names in _needed(spec.type_hint, present, weights=weights):
        if not present.intersection(names):
            raise ModelInvalid(f"component {name!r} has no {' or '.join(names)} in {str(folder)!r}")
    if weights:
        check_weights(folder, name, spec.variant or "")


def variants_of(folders: Mapping[str, Path], variant: str) -> dict[str, str]:
    """The variant to load of each model by name: the one that is asked for where the model has it, or else none.

    Raises `ModelInvalid` where none of them has it.
    """
    found = {name: variants(folder) if folder.is_dir() else [] for name, folder in folders.items()}
    known = sorted({one for ones in found.values() for one in ones})
    if variant and variant not in known:
        has = f"there is {' and '.join(map(repr, known))}" if known else "there is no variant"
        raise ModelInvalid(f"no component of the model has weights of the variant {variant!r}: {has}")
    return {name: variant if variant in ones else "" for name, ones in found.items()}


def _needed(cls: Any, present: set[str], *, weights: bool) -> list[tuple[str, ...]]:
    """Groups of file names; of each group one file must be there."""
    names = {base.__name__ for base in getattr(cls, "__mro__", ())}
    if weights:
        return [("config.json",)]
    if "ConfigMixin" in names and getattr(cls, "config_name", None):
        return [(cls.config_name,)]
    needed: list[tuple[str, ...]] = []
    is_auto = getattr(cls, "__name__", "").startswith("Auto")
    if "PreTrainedTokenizerBase" in names or (is_auto and "Tokenizer" in cls.__name__):
        needed += [("tokenizer_config.json",), *_vocabulary(cls, present)]
    if "ProcessorMixin" in names:
        needed += [_PREPROCESSORS, *([("tokenizer_config.json",), _VOCABULARIES] if _has_tokenizer(cls) else [])]
    if names & {"ImageProcessingMixin", "FeatureExtractionMixin", "BaseVideoProcessor"}:
        needed.append((*_PREPROCESSORS, "video_preprocessor_config.json"))
    return needed


def _vocabulary(cls: Any, present: set[str]) -> list[tuple[str, ...]]:
    """A tokenizer's own files: the one of its fast form, or all of its slow form."""
    files = dict(getattr(cls, "vocab_files_names", None) or {})
    fast = files.pop("tokenizer_file", "tokenizer.json")
    if fast in present:
        return []
    if files:
        return [(name, fast) for name in files.values()]
    return [_VOCABULARIES] if cls.__name__.startswith("Auto") else []


def _has_tokenizer(cls: Any) -> bool:
    attributes = getattr(cls, "attributes", None) or getattr(cls, "get_attributes", list)()
    return any("tokenizer" in str(name) for name in attributes)


def check_uses(blocks: Iterable[ModularPipelineBlocks], held: Collection[str], components: Components) -> None:
    """Raises `ModelInvalid` where a component of a local folder lacks such a file and a block's code asks for it."""
    innermost = (one for block in blocks for one in walk(block) if not getattr(one, "sub_blocks", None))
    for one in innermost:
        names = [spec.name for spec in one.expected_components if spec.name in held]
        used = reached_code.names_used([type(one)]) if names else frozenset()
        if "apply_chat_template" in used:
            _check_templates(names, components)
        if "generate" in used:
            _check_generation(names, components)


def _check_templates(names: Iterable[str], components: Components) -> None:
    """One of a block's components must have a template; which one it asks can't be told from outside."""
    found = {name: components.get(name) for name in names}
    able = {name: one for name, one in found.items() if hasattr(one, "apply_chat_template")}
    if not able or any(getattr(one, "chat_template", None) for one in able.values()):
        return
    name = next(iter(able))
    if (folder := folder_of(components.specs[name])).is_dir():
        raise ModelInvalid(f"component {name!r} has no chat_template.jinja in {str(folder)!r}, which its pipeline uses")


def _check_generation(names: Iterable[str], components: Components) -> None:
    for name in names:
        can_generate = getattr(components.specs[name].type_hint, "can_generate", None)
        folder = folder_of(components.specs[name])
        if can_generate is None or not can_generate() or not folder.is_dir() or (folder / _GENERATION).exists():
            continue
        raise ModelInvalid(
            f"component {name!r} has no {_GENERATION} in {str(folder)!r}, and its pipeline has it write text; where "
            "the model never had one, put a file there that holds {}"
        )
