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
from triptych.model.description import is_hub_id
from triptych.roles import ROLES, role_name
from triptych.stages import digests, reached_code
from triptych.stages import folder as folders
from triptych.stages.components import check_component, check_uses, variants_of
from triptych.stages.handoff import Needs, final_outputs, walk
from triptych.stages.library import ModularPipeline, ModularPipelineBlocks, SequentialPipelineBlocks
from triptych.stages.library_errors import loading
from triptych.stages.means import StageMeans
from triptych.stages.pipelines import Components, comes_from_files, for_job, is_made, is_model, is_present
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Role

STAGES_VERSION = 6
"""Raise it when stages give other results for equal files, software and requests: such workers mustn't mix."""
DENOISE = "denoise"
"""Name of the block that is the transformer's; blocks before it are the encoder's, blocks after it the decoder's."""


class Whole:
    """A pipeline as one piece, opened without weights. Immutable; roles are cut from it by `Stage.load`."""

    def __init__(
        self, model: str, revision: str, pipeline: ModularPipeline, commit: str, variant: str, workflows: Sequence[str]
    ) -> None:
        self.model = model
        self.variant = variant
        self.workflows = tuple(workflows)
        """The workflows that roles load; empty for all."""
        self.revision = revision
        self.commit = commit
        """What `revision` meant when the model was opened; empty for a local folder."""
        self.pipeline = pipeline
        self.blocks: dict[Role.ValueType, ModularPipelineBlocks] = _split(pipeline._blocks, model)
        known = dict(self.workflow_inputs())
        if unknown := [name for name in workflows if name not in known]:
            accepted = ", ".join(known) or "nothing; this pipeline has only one workflow"
            raise InvalidRequest("workflows", unknown, accepted)

    @classmethod
    def open(
        cls,
        model: str,
        revision: str = "",
        variant: str = "",
        workflows: Sequence[str] = (),
        *,
        needs_weights: bool = True,
    ) -> Whole:
        """Opens a local folder or hub id, in the standard layout (`model_index.json`) or the modular one.

        With a `variant` (`fp16`), weights of that name are loaded, of each model that has them; with `workflows`, only
        what these run. Without `needs_weights`, a local folder's
        configurations are enough.

        Raises `ModelInvalid` with one sentence where it is missing, not diffusers', truncated, or can't be split,
        `MissingExtra` where a package is missing that it needs, and `InvalidRequest` for an unknown workflow.
        """
        folder = Path(model)
        is_local = folder.exists() or not is_hub_id(model)
        if is_local:
            folders.check_index(folder)
        commit = "" if is_local else digests.commit_of(model, revision)
        with loading(repr(model), "can't be opened as a diffusers pipeline"):
            pipeline = ModularPipeline.from_pretrained(
                str(folder) if is_local else model, revision=commit or None, trust_remote_code=False
            )
        whole = cls(model, revision, pipeline, commit, variant, workflows)
        if is_local and not needs_weights:
            return whole
        whole._choose_variants()
        if is_local:
            whole._check_components()
        else:
            whole._pin()
        return whole

    def _from_files(self) -> dict[str, Any]:
        """Specs by name of the components that are loaded from files."""
        return {name: spec for name, spec in self.pipeline._component_specs.items() if comes_from_files(spec)}

    def _choose_variants(self) -> None:
        """On the hub, libraries look for a variant's files themselves."""
        models = {name: spec for name, spec in self._from_files().items() if is_model(spec)}
        places = {name: folders.folder_of(spec) for name, spec in models.items()}
        if self.variant and any(place.is_dir() for place in places.values()):
            chosen = variants_of(places, self.variant)
        else:
            chosen = dict.fromkeys(models, self.variant)
        for name, spec in models.items():
            spec.variant = chosen[name] or spec.variant or None

    def _check_components(self) -> None:
        for spec in self._from_files().values():
            if Path(spec.pretrained_model_name_or_path).is_dir():
                check_component(spec, weights=is_model(spec))

    def _pin(self) -> None:
        """Have every component loaded from the commit that was opened, not from what its branch is by then."""
        for spec in self._from_files().values():
            source = spec.pretrained_model_name_or_path
            if source == self.model:
                spec.revision = self.commit or None
            elif not Path(source).is_dir():
                spec.revision = digests.commit_of(source, spec.revision or "") or None

    def components(
        self, dtype: torch.dtype = torch.float32, device: torch.device | None = None, means: StageMeans | None = None
    ) -> Components:
        """A new set of this pipeline's components, none of them made yet."""
        return Components(self.pipeline, dtype, device or torch.device("cpu"), means)

    def component_names(self, role: Role.ValueType) -> list[str]:
        """Components that the role holds: those that the model has and that blocks of its workflows expect."""
        return self._expected(self._loaded_blocks(role))

    def waiting_names(self, role: Role.ValueType) -> list[str]:
        """Models among `component_names` that the role loads when a job first uses one: those that a later role loads,
        too. Blocks before it mostly read their configuration, and call them in some workflows only."""
        later = {name for one in ROLES[ROLES.index(role) + 1 :] for name in self.component_names(one)}
        models = {name for name, spec in self._from_files().items() if is_model(spec)}
        return [name for name in self.component_names(role) if name in later and name in models]

    def unloaded_names(self, role: Role.ValueType) -> set[str]:
        """Components that only workflows expect which aren't loaded."""
        return set(self._expected([self.blocks[role]])).difference(self.component_names(role))

    def _expected(self, blocks: Sequence[ModularPipelineBlocks]) -> list[str]:
        """Components that the blocks expect and the model has, in the whole pipeline's order."""
        expected = {spec.name for block in blocks for spec in block.expected_components}
        specs = self.pipeline._component_specs
        return [name for name, spec in specs.items() if name in expected and (is_made(spec) or is_present(spec))]

    def check_packages(self, role: Role.ValueType) -> None:
        """Raises `MissingExtra` where the role's code needs a package that isn't installed."""
        held = (self.pipeline._component_specs[name].type_hint for name in self.component_names(role))
        nested = (type(one) for block in self._loaded_blocks(role) for one in walk(block))
        purpose = f"the {role_name(role)} of {self.model!r}"
        reached_code.check([type(self.pipeline), *nested, *(kind for kind in held if kind)], purpose)

    def check_uses(self, role: Role.ValueType, components: Components) -> None:
        """Raises `ModelInvalid` where a file is missing that the role's code uses."""
        check_uses(self._loaded_blocks(role), self.component_names(role), components)

    def workflow_inputs(self) -> list[tuple[str, list[str]]]:
        """The pipeline's workflows, each with the inputs that its requests give; a name may have several sets of them.

        Empty where the pipeline has only one workflow.
        """
        return [
            (name, [key for key, value in given.items() if value is True])
            for name, ways in (self.pipeline._blocks._workflow_map or {}).items()
            for given in (ways if isinstance(ways, tuple) else (ways,))
        ]

    def _loaded_blocks(self, role: Role.ValueType) -> list[ModularPipelineBlocks]:
        """The role's blocks that run in the loaded workflows; diffusers names them `block.nested`."""
        if not self.workflows:
            return [self.blocks[role]]
        return [
            block
            for workflow in self.workflows
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
        nothing = SequentialPipelineBlocks.from_blocks_dict({})
        return for_job(self.components().pipeline(nothing, []), {}, None)

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
                *filter(None, [spec.variant]),
                {key: value for key, value in (spec.config or {}).items() if not key.startswith("_")},
            ]
            for name, spec in self.pipeline._component_specs.items()
        }
        parts = [STAGES_VERSION, type(self.pipeline).__name__, digests.software(), config, specs, self._contents()]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def _contents(self) -> list[str]:
        """A digest or commit for each place that the model's files come from: most have one, an index may name more."""
        found = {"": self._content(self.model, self.commit)}
        for name, spec in self._from_files().items():
            source = spec.pretrained_model_name_or_path
            if source != self.model and Path(source).resolve() != Path(self.model).resolve():
                found[name] = self._content(source, spec.revision or "", spec.subfolder or "")
        return [f"{name} {content}" for name, content in sorted(found.items())]

    def _content(self, source: str, commit: str, subfolder: str = "") -> str:
        folder = Path(source)
        if folder.is_dir():
            return digests.folder_digest(folder / subfolder)
        digests.check_downloaded(source, commit)
        return f"{source}@{commit}"


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
