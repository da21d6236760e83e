"""Which packages a role's code needs, found by reading it: one that is missing is told at the start, by its name.

The libraries guard imports (`if is_ftfy_available(): import ftfy`) and use the name later without asking, so a missing
package would be a `NameError` in the middle of a job. `check` reads the code that a role's blocks and models reach: a
global name that it uses, and that its module lacks because a guarded import didn't happen, means a missing package.
Uses in branches that are never taken here (`if XLA_AVAILABLE:`) don't count.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import re
import sys
import types
from collections.abc import Iterable, Iterator
from typing import Any

from triptych.stages.library_errors import is_installed, missing_extra, named_in

_LIBRARY = "diffusers."
_MACHINERY = tuple(
    _LIBRARY + name
    for name in (
        *("loaders.", "hooks.", "quantizers.", "configuration_utils", "utils.", "schedulers."),
        *("pipelines.pipeline_", "modular_pipelines.modular_pipeline"),
        *("models.modeling_", "models.model_loading_", "models.attention"),
    )
)
"""Modules not read: loading and saving, whose switches no role turns; kernels for hardware that is asked for first;
schedulers, which ask for what their settings need when they are made."""


def check(roots: Iterable[type], purpose: str) -> None:
    """Raises `MissingExtra` where code that these classes reach needs a package that isn't installed."""
    for function in _reached(roots):
        for name, package in _absent_globals(function):
            if _is_used(function, name):
                raise missing_extra(package, purpose)


def names_used(roots: Iterable[type]) -> frozenset[str]:
    """Names of globals and attributes in code of the library that these classes reach."""
    return frozenset(
        name for function in _reached(roots) for code in _codes(function.__code__) for name in code.co_names
    )


def _reached(roots: Iterable[type]) -> Iterator[types.FunctionType]:
    """Functions of the library that the classes' methods reach by name, each once."""
    waiting: list[Any] = list(roots)
    seen: set[int] = set()
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, type):
            waiting.extend(_methods(found))
        elif isinstance(found, types.FunctionType) and _is_read(found):
            yield found
            used = (found.__globals__.get(name) for code in _codes(found.__code__) for name in code.co_names)
            waiting.extend(other for other in used if isinstance(other, (type, types.FunctionType)) and _is_read(other))


def _is_read(found: type | types.FunctionType) -> bool:
    module = found.__module__ or ""
    return module.startswith(_LIBRARY) and not module.startswith(_MACHINERY)


def _methods(kind: type) -> Iterator[types.FunctionType]:
    for base in kind.__mro__:
        if not _is_read(base):
            continue
        for value in vars(base).values():
            parts = (value.fget, value.fset) if isinstance(value, property) else (getattr(value, "__func__", value),)
            for part in parts:
                function = inspect.unwrap(part) if callable(part) else part
                if isinstance(function, types.FunctionType):
                    yield function


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _absent_globals(function: types.FunctionType) -> Iterator[tuple[str, str]]:
    """Names that the function's module would have if a package were installed, each with that package."""
    conditional = _conditional(function.__module__)
    for name in sorted({name for code in _codes(function.__code__) for name in code.co_names}):
        package = conditional.get(name)
        if name in function.__globals__:
            package = _named_by_dummy(function.__globals__[name])
        elif package is not None and (hasattr(builtins, name) or is_installed(package)):
            package = None
        if package is not None:
            yield name, package


@functools.cache
def _conditional(module: str) -> dict[str, str]:
    """Packages by the names that imports under a condition, at the top of the module, would bind."""
    bound: dict[str, str] = {}
    for node in _tree(module).body:
        if not isinstance(node, (ast.If, ast.Try)):
            continue
        for inner in ast.walk(node):
            if isinstance(inner, ast.Import):
                names = {alias.asname or alias.name.partition(".")[0]: alias.name for alias in inner.names}
            elif isinstance(inner, ast.ImportFrom) and inner.level == 0:
                names = {alias.asname or alias.name: str(inner.module) for alias in inner.names}
            else:
                continue
            bound.update({name: path.partition(".")[0] for name, path in names.items()})
    return bound


@functools.cache
def _tree(module: str) -> ast.Module:
    try:
        return ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, KeyError):  # no source lies beside it
        return ast.Module(body=[], type_ignores=[])


def _named_by_dummy(value: Any) -> str | None:
    """The package that a stand-in class of the library says it misses; None for anything else."""
    if type(value).__name__ != "DummyObject":
        return None
    try:
        value.from_config()
    except ImportError as error:
        return named_in(error)
    except Exception:  # noqa: BLE001 — then it isn't what it seemed to be
        return None
    return None


def _is_used(function: types.FunctionType, name: str) -> bool:
    """Whether the function uses the name in a branch that can run with the installed packages."""
    first_line = function.__code__.co_firstlineno
    for node in ast.walk(_tree(function.__module__)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or node.name != function.__name__:
            continue
        if min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) == first_line:
            return any(_uses(statement, name, function.__globals__) for statement in node.body)
    return True


def _uses(node: ast.AST, name: str, scope: dict[str, Any]) -> bool:
    if isinstance(node, ast.Name):
        return node.id == name
    if isinstance(node, (ast.If, ast.IfExp)):
        truth = _truth(node.test, scope)
        body = node.body if isinstance(node.body, list) else [node.body]
        other = node.orelse if isinstance(node.orelse, list) else [node.orelse]
        taken = [node.test, *(body if truth is not False else []), *(other if truth is not True else [])]
        return any(_uses(child, name, scope) for child in taken)
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            if _uses(value, name, scope):
                return True
            if _truth(value, scope) is isinstance(node.op, ast.Or):
                return False
        return False
    if isinstance(node, ast.arg):
        return False
    if isinstance(node, ast.AnnAssign):
        return node.value is not None and _uses(node.value, name, scope)
    return any(_uses(child, name, scope) for child in ast.iter_child_nodes(node))


def _truth(test: ast.expr, scope: dict[str, Any]) -> bool | None:
    """What a condition about installed packages comes to; None for any other."""
    if isinstance(test, ast.Name) and isinstance(scope.get(test.id), bool):
        return bool(scope[test.id])
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = _truth(test.operand, scope)
        return None if inner is None else not inner
    if isinstance(test, ast.BoolOp):
        values = [_truth(value, scope) for value in test.values]
        decisive = isinstance(test.op, ast.Or)
        return decisive if decisive in values else None if None in values else not decisive
    is_call = isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and not test.args and not test.keywords
    name = test.func.id if is_call else ""  # type: ignore[attr-defined]
    asked = scope.get(name) if re.fullmatch(r"is_\w+_available", name) else None
    return bool(asked()) if callable(asked) else None
