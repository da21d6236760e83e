"""Files that only some roles' code uses: chat templates, settings of text generation.

Without a template every job would fail; without the settings a language model would silently write something else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from triptych.errors import ModelInvalid
from triptych.stages import reached_code
from triptych.stages.handoff import walk
from triptych.stages.library import ModularPipelineBlocks
from triptych.stages.pipelines import Components

_GENERATION = "generation_config.json"


def check(blocks: Iterable[ModularPipelineBlocks], held: Collection[str], components: Components) -> None:
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
    if (folder := _folder(components.specs[name])).is_dir():
        raise ModelInvalid(f"component {name!r} has no chat_template.jinja in {str(folder)!r}, which its pipeline uses")


def _check_generation(names: Iterable[str], components: Components) -> None:
    for name in names:
        can_generate = getattr(components.specs[name].type_hint, "can_generate", None)
        folder = _folder(components.specs[name])
        if can_generate is None or not can_generate() or not folder.is_dir() or (folder / _GENERATION).exists():
            continue
        raise ModelInvalid(
            f"component {name!r} has no {_GENERATION} in {str(folder)!r}, and its pipeline has it write text; where "
            "the model never had one, put a file there that holds {}"
        )


def _folder(spec: Any) -> Path:
    return Path(spec.pretrained_model_name_or_path or "", spec.subfolder or "")
