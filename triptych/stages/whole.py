"""The whole pipeline, without weights: what it is, how it splits into roles, what it accepts."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from triptych.errors import InvalidRequest, ModelInvalid
from triptych.roles import ROLES
from triptych.stages import digests, hub
from triptych.stages import folder as folders
from triptych.stages.describe import describe
from triptych.stages.handoff import Needs, final_outputs
from triptych.stages.library import ModularPipeline, ModularPipelineBlocks, SequentialPipelineBlocks
from triptych.stages.roles import Components, for_job, is_model, is_present, restrict
from triptych.v1 import model_pb2
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Role

STAGES_VERSION = 3
"""Raise it when stages make something else of equal files, software and requests: such workers mustn't mix."""
DENOISE = "denoise"
"""Name of the block that is the transformer's; blocks before it are the encoder's, blocks after it the decoder's."""


class Whole:
    """A pipeline as one piece, opened without weights. Immutable; roles are cut from it by `Stage.load`."""

    def __init__(self, model: str, revision: str, pipeline: ModularPipeline, commit: str = "") -> None:
        self.model = model
        self.revision = revision
        self.commit = commit
        """What `revision` meant when the model was opened; empty for a local folder."""
        self.pipeline = pipeline
        self.blocks: dict[Role.ValueType, ModularPipelineBlocks] = _split(pipeline._blocks, model)

    @classmethod
    def open(cls, model: str, revision: str = "") -> Whole:
        """Opens a local folder or hub id, in the standard layout (`model_index.json`) or the modular one.

        Raises `ModelInvalid` with one sentence where it is missing, not diffusers', truncated, or can't be split.
        """
        folder = Path(model)
        is_local = folder.exists() or folder.is_absolute() or model.startswith(".") or model.count("/") != 1
        if is_local:
            folders.check_index(folder)
        commit = "" if is_local else hub.commit_of(model, revision)
        try:
            pipeline = ModularPipeline.from_pretrained(
                str(folder) if is_local else model, revision=commit or None, trust_remote_code=False
            )
        except (OSError, ValueError, AttributeError, KeyError, TypeError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise ModelInvalid(f"{model!r} can't be opened as a diffusers pipeline: {reason}") from error
        if not is_local:
            _pin(pipeline, model, commit)
        whole = cls(model, revision, pipeline, commit)
        if is_local:
            whole._check_components(folder)
        return whole

    def _check_components(self, folder: Path) -> None:
        for name, spec in self.pipeline._component_specs.items():
            if spec.default_creation_method == "from_config" or not is_present(spec):
                continue
            where = Path(spec.pretrained_model_name_or_path)
            if where.resolve() == folder.resolve():
                folders.check_component(where / (spec.subfolder or ""), name, weights=is_model(spec))

    def components(self, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Components:
        """A new set of this pipeline's components, none of them made yet."""
        return Components(self.pipeline, dtype, device or torch.device("cpu"))

    def component_names(self, role: Role.ValueType, workflows: Sequence[str] = ()) -> list[str]:
        """Components that the role's blocks expect and the model has, in the whole pipeline's order.

        With `workflows`, only those that one of these expects. Raises `InvalidRequest` for a workflow that isn't one.
        """
        blocks = [self.blocks[role]] if not workflows else self._execution_blocks(role, workflows)
        expected = {spec.name for block in blocks for spec in block.expected_components}
        specs = self.pipeline._component_specs
        return [
            name
            for name, spec in specs.items()
            if name in expected and (spec.default_creation_method == "from_config" or is_present(spec))
        ]

    def _execution_blocks(self, role: Role.ValueType, workflows: Sequence[str]) -> list[ModularPipelineBlocks]:
        """The role's blocks that run in these workflows; diffusers names them `block.nested`."""
        known = list(self.pipeline._blocks._workflow_map or ())
        if unknown := sorted(set(workflows).difference(known)):
            raise InvalidRequest(
                "workflows", unknown, ", ".join(known) or "nothing; this pipeline has only one workflow"
            )
        return [
            block
            for workflow in workflows
            for path, block in self.pipeline._blocks.get_workflow(workflow).sub_blocks.items()
            if path.partition(".")[0] in self.blocks[role].sub_blocks
        ]

    def needs_after(self, role: Role.ValueType) -> Needs:
        """What the roles after this one take from the state."""
        return Needs.of(self.blocks[later] for later in ROLES[ROLES.index(role) + 1 :])

    def outputs(self) -> list[str]:
        """Names of what the decoder yields."""
        return final_outputs(self.blocks[ROLE_DECODER])

    def inspection(self) -> Any:
        """A pipeline that holds nothing and answers about configuration: every model is a shell."""
        device = torch.device("cpu")
        components = self.components()
        blocks = SequentialPipelineBlocks.from_blocks_dict({})
        return for_job(restrict(self.pipeline, blocks, [], components, torch.float32, device), {}, None)

    def describe(self) -> model_pb2.ModelDescription:
        """What the pipeline is and accepts, for clients, validation and registration."""
        return describe(self)

    def recommendations(self) -> dict[str, Any]:
        """Defaults that the model's folder recommends over the pipeline's; empty for models on the hub."""
        folder = Path(self.model)
        return folders.read_recommendations(folder) if folder.is_dir() else {}

    def config_digest(self) -> str:
        """SHA-256 that workers of one fleet must agree on: all that decides bits and isn't a role's own setting.

        That is every file that is loaded, the software's versions, the pipeline's class and configs, the folder's
        recommendations. What lies on the hub counts by its commit. Raises `ModelInvalid` for files that can't be read.
        """
        config = {name: value for name, value in self.pipeline.config.items() if not isinstance(value, (list, tuple))}
        specs = {
            # Underscored keys are diffusers' bookkeeping, made from sets: their order differs between processes.
            name: [
                getattr(spec.type_hint, "__name__", None),
                spec.default_creation_method,
                {key: value for key, value in (spec.config or {}).items() if not key.startswith("_")},
            ]
            for name, spec in self.pipeline._component_specs.items()
        }
        parts = [STAGES_VERSION, type(self.pipeline).__name__, digests.software(), config, specs, self._contents()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def _contents(self) -> list[str]:
        """A digest or commit for each place that the model's files come from: most have one, an index may name more."""
        found = {"": self._content(self.model, self.commit)}
        for name, spec in self.pipeline._component_specs.items():
            if spec.default_creation_method == "from_config" or not is_present(spec):
                continue
            source = spec.pretrained_model_name_or_path
            if source != self.model and Path(source).resolve() != Path(self.model).resolve():
                found[name] = self._content(source, spec.revision or "", spec.subfolder or "")
        return [f"{name} {content}" for name, content in sorted(found.items())]

    def _content(self, source: str, commit: str, subfolder: str = "") -> str:
        folder = Path(source)
        if folder.is_dir():
            return digests.folder_digest(folder / subfolder)
        hub.check_downloaded(source, commit)
        return f"{source}@{commit}"


def _pin(pipeline: ModularPipeline, model: str, commit: str) -> None:
    """Have every component loaded from the commit that was opened, not from what its branch is by then."""
    for spec in pipeline._component_specs.values():
        if spec.default_creation_method == "from_config" or not is_present(spec):
            continue
        source = spec.pretrained_model_name_or_path
        if source == model:
            spec.revision = commit or None
        elif not Path(source).is_dir():
            spec.revision = hub.commit_of(source, spec.revision or "") or None


def _split(blocks: ModularPipelineBlocks, model: str) -> dict[Role.ValueType, ModularPipelineBlocks]:
    """The blocks of each role, as copies that nothing else holds."""
    names = list(blocks.sub_blocks)
    if DENOISE not in names:
        raise ModelInvalid(f"{model!r} can't be split: its blocks are {names}, none of them {DENOISE!r}")
    position = names.index(DENOISE)
    parts = {
        ROLE_ENCODER: names[:position],
        ROLE_TRANSFORMER: [DENOISE],
        ROLE_DECODER: names[position + 1 :],
    }
    return {
        role: SequentialPipelineBlocks.from_blocks_dict({name: copy.deepcopy(blocks.sub_blocks[name]) for name in part})
        for role, part in parts.items()
    }
