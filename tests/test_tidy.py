"""The style guide, as a test (see STYLE.md)."""

from __future__ import annotations

import ast
import filecmp
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 400
GENERATED = ROOT / "triptych" / "v1"
SOURCES = sorted(
    path
    for folder in ("triptych", "services", "clients", "benchmarks", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if GENERATED not in path.parents
)
ONLY_IN = {
    "mooncake": {"triptych/transport/mooncake_engine.py"},
    "diffusers": {"triptych/stages/library.py", "examples"},
    "pyverbs": {"triptych/rings/verbs/pyverbs_card.py"},
    "ibverbs": {"triptych/rings/verbs/ibverbs_card.py"},
}
ENVIRONMENT_IN = {"triptych/config.py", "triptych/transport/mooncake_engine.py"}


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


def test_environment_is_read_in_one_place(source: tuple[str, ast.Module, str]) -> None:
    name, _, text = source
    if name.startswith(("triptych/", "services/")) and name not in ENVIRONMENT_IN:
        assert "os.environ" not in text, f"{name} touches the environment; triptych/config.py does that"
        assert "getenv" not in text, f"{name} touches the environment; triptych/config.py does that"


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
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", *outs, *protos]
    subprocess.run(command, check=True, env={"PATH": str(Path(sys.executable).parent)}, timeout=60)
    made = sorted(path.name for path in (tmp_path / "triptych" / "v1").iterdir())
    kept = sorted(
        path.name for path in GENERATED.iterdir() if path.suffix in (".py", ".pyi") and path.stem != "__init__"
    )
    assert made == kept
    _, different, errors = filecmp.cmpfiles(tmp_path / "triptych" / "v1", GENERATED, made, shallow=False)
    assert (different, errors) == ([], []), "run `make proto`"


@pytest.mark.parametrize("document", ["SECURITY.md", "ARCHITECTURE.md"])
def test_the_tests_that_a_document_names_are_there(document: str) -> None:
    named = set(re.findall(r"`((?:\w+/)*test_\w+\.py)", (ROOT / document).read_text()))
    assert named
    assert [name for name in sorted(named) if not (ROOT / "tests" / name).is_file()] == []
