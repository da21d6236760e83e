"""The style guide, as a test (see STYLE.md)."""

from __future__ import annotations

import ast
import dataclasses
import filecmp
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from triptych.config import ControllerConfig, TextEncoderConfig, WorkerConfig
from triptych_client.cli import build_parser
from triptych_client.fleet_plan import OWN_SETTINGS

ROOT = Path(__file__).parent.parent
FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 400
GENERATED = tuple(ROOT / "triptych" / package for package in ("v1", "externalscaler"))
SOURCES = sorted(
    path
    for folder in ("triptych", "services", "clients", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if not set(GENERATED).intersection(path.parents)
)
ONLY_IN = {
    "mooncake": {"triptych/transport/mooncake_engine.py"},
    "diffusers": {"triptych/stages/library.py", "examples", "benchmarks/gpu_models.py"},
    "pyverbs": {"triptych/rings/verbs/pyverbs_card.py"},
    "ibverbs": {"triptych/rings/verbs/ibverbs_card.py"},
}
ENVIRONMENT_IN = {"triptych/config.py", "triptych/environment.py", "triptych/transport/mooncake_engine.py"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(params=SOURCES, ids=name_of, scope="module")
def source(request: pytest.FixtureRequest) -> tuple[str, ast.Module, str]:
    text = request.param.read_text()
    return name_of(request.param), ast.parse(text), text


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_length(source: tuple[str, ast.Module, str]) -> None:
    name, tree, text = source
    assert text.count("\n") <= MODULE_LINES_MAX, f"{name} is too long: has it one subject?"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{name}:{node.lineno} {node.name} has {lines} lines"


def test_docstrings(source: tuple[str, ast.Module, str]) -> None:
    name, tree, text = source
    assert not text or ast.get_docstring(tree), f"{name} doesn't say what it is for"
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}:{node.lineno} {node.name} has no docstring"


def test_import_direction(source: tuple[str, ast.Module, str]) -> None:
    name, tree, _ = source
    for module in imports(tree):
        top = module.partition(".")[0]
        if name.startswith("triptych/"):
            assert top not in ("services", "triptych_client"), f"{name} imports {module}: the library stands alone"
        if name.startswith("clients/"):
            assert top != "services", f"{name} imports {module}: clients speak to services by gRPC only"
        allowed = ONLY_IN.get(top)
        assert allowed is None or any(name.startswith(a) for a in allowed), f"{name} imports {module}"


WINGS = ("v1", "security", "telemetry", "rpc", "media", "model", "planning", "transport", "rings", "stages")
"""Lowest first, as ARCHITECTURE.md draws them: a wing imports from those before it. Loose modules lie below all but v1,
and `services` and the clients above all."""
LOOSE_MODULES_MAX = 8


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "clients" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES if not name_of(path).startswith(("benchmarks/", "examples/"))}


def imported_modules(module: str) -> set[str]:
    """What a module imports of ours, also late and for types only."""
    path, found = MODULES[module], set()
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            named = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in named}
    return (found & set(MODULES)) - {module}


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: imported_modules(module) for module in MODULES}
    order = TopologicalSorter(graph)
    order.prepare()  # raises CycleError, which names the circle


def wing_of(module: str) -> str | None:
    name = [*module.split("."), ""][1]
    return name if module.startswith("triptych.") and name in WINGS else None


def test_wings_import_downwards_only() -> None:
    for module in MODULES:
        if not module.startswith("triptych."):
            continue
        wing = wing_of(module)
        below = WINGS[: WINGS.index(wing)] if wing else ("v1",)
        for other in imported_modules(module):
            is_own_or_loose = wing_of(other) in (wing, None)
            assert is_own_or_loose or wing_of(other) in below, f"{module} imports {other}, which is above it"
    loose = [path.name for path in (ROOT / "triptych").glob("*.py") if path.name != "__init__.py"]
    assert len(loose) <= LOOSE_MODULES_MAX, loose


def test_environment_is_read_in_one_place(source: tuple[str, ast.Module, str]) -> None:
    name, _, text = source
    if name.startswith(("triptych/", "services/")) and name not in ENVIRONMENT_IN:
        assert "os.environ" not in text, f"{name} touches the environment"
        assert "getenv" not in text, f"{name} touches the environment"


def constants(path: Path) -> Iterator[str]:
    """Names in capitals that a module defines. Private ones and type variables are no facts that others use."""
    for node in ast.parse(path.read_text()).body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.AnnAssign) or (isinstance(node, ast.Assign) and not is_call_of(node.value, "TypeVar")):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            yield from (one.id for one in names if isinstance(one, ast.Name) and one.id.isupper() and one.id[0] != "_")


def is_call_of(value: ast.expr, name: str) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == name


def test_no_constant_is_defined_twice() -> None:
    places: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for name in constants(path):
            places.setdefault(name, []).append(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_every_setting_can_be_given_to_up() -> None:
    flags = vars(build_parser(["up"]).parse_args(["up"]))
    settings = {f.name for cls in (ControllerConfig, TextEncoderConfig, WorkerConfig) for f in dataclasses.fields(cls)}
    assert settings - flags.keys() == OWN_SETTINGS
    assert [name for name in settings - OWN_SETTINGS if flags[name] is not None] == [], "a default is declared twice"


def test_no_pickle_and_no_blocking_sleep(source: tuple[str, ast.Module, str]) -> None:
    name, tree, text = source
    assert "pickle" not in set(imports(tree)), name
    if not name.startswith(("benchmarks/", "examples/")):
        assert "time.sleep(" not in text, f"{name}: sleep is no synchronisation"


def test_errors_are_not_swallowed(source: tuple[str, ast.Module, str]) -> None:
    name, tree, _ = source
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{name}:{node.lineno} bare except"
            only_pass = all(isinstance(child, ast.Pass) for child in node.body)
            assert not only_pass, f"{name}:{node.lineno} swallows an error without a word"


def test_generated_code_is_fresh(tmp_path: Path) -> None:
    protos = sorted(p.relative_to(ROOT / "protos").as_posix() for p in (ROOT / "protos").rglob("*.proto"))
    outs = [f"--{kind}_out=quiet:{tmp_path}" for kind in ("mypy", "mypy_grpc")]
    outs += [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python")]
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{ROOT / 'protos'}",
        f"-I{ROOT / 'third_party'}",
        *outs,
        *protos,
    ]
    subprocess.run(command, check=True, env={"PATH": str(Path(sys.executable).parent)}, timeout=60)
    for folder in GENERATED:
        fresh = tmp_path / "triptych" / folder.name
        made = sorted(path.name for path in fresh.iterdir())
        kept = sorted(
            path.name for path in folder.iterdir() if path.suffix in (".py", ".pyi") and path.stem != "__init__"
        )
        assert made == kept
        _, different, errors = filecmp.cmpfiles(fresh, folder, made, shallow=False)
        assert (different, errors) == ([], []), "run `make proto`"


def test_the_proxy_knows_the_contract(tmp_path: Path) -> None:
    made = tmp_path / "triptych.binpb"
    flags = ["--as-file-descriptor-set", "--exclude-source-info", "-o", str(made)]
    subprocess.run([Path(sys.executable).parent / "buf", "build", *flags], check=True, cwd=ROOT, timeout=60)
    assert made.read_bytes() == (ROOT / "deploy/envoy/triptych.binpb").read_bytes(), "run `make proto`"


DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_the_tests_that_a_document_names_are_there(document: Path) -> None:
    named = set(re.findall(r"`(?:tests/)?((?:\w+/)*test_\w+\.py)", document.read_text()))
    assert named or document.name != "SECURITY.md"
    assert [name for name in sorted(named) if not (ROOT / "tests" / name).is_file()] == []


MAPS = [path for path in DOCUMENTS if path not in (ROOT / "README.md", ROOT / "SECURITY.md")]
"""Documents that name files of the project only. (The other two also name files that a reader makes.)"""
PATH = re.compile(
    r"`((?:triptych|services|clients|tests|protos|docs|deploy|examples|benchmarks)/[\w./*-]*|[\w./-]+\.py)"
)
"""From the project's folder, or from that of the tests."""
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


@pytest.mark.parametrize("document", MAPS, ids=name_of)
def test_the_files_that_a_document_names_are_there(document: Path) -> None:
    named = PATH.findall(document.read_text())
    assert [name for name in named if not any(ROOT.glob(name)) and not any((ROOT / "tests").glob(name))] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_the_links_of_a_document_lead_somewhere(document: Path) -> None:
    links = LINK.findall(document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []
