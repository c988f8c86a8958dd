"""Which sources a policy's result depends on: what it imports, directly or not, inside `policies`.

A change elsewhere, or of comments, layout and docstrings, leaves its results valid.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from policies.catalog import POLICIES
from policies.clairvoyant import Clairvoyant
from serve_app.repository import REPOSITORY

# What plays a trace, and what makes policies and scenarios of words and numbers.
COMMON = (
    "policies.sim.fleet", "serve_app.simulator.scenario", "serve_app.simulator.attainable",
    "serve_app.simulator.load", "serve_app.simulator.models",
)  # fmt: skip
ROOTS = ("policies", "serve_app.simulator")


def digest_of(names: tuple[str, ...]) -> str:
    """Of the sources that runs of these policies depend on."""
    kinds = [Clairvoyant if name == "clairvoyant" else POLICIES[name] for name in names]
    modules = [*COMMON, *(kind.__module__ for kind in kinds)]
    if "ray_default" in names:
        modules.append("serve_app.simulator.ray_rule")
    return digest_of_modules(tuple(sorted(set(modules))))


@lru_cache(maxsize=64)
def digest_of_modules(modules: tuple[str, ...]) -> str:
    """Of these modules and of all that they import under ROOTS."""
    reached: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in reached and _path(name) is not None:
            reached.add(name)
            waiting += imports_of(name)
    found = hashlib.sha256()
    for name in sorted(reached):
        found.update(f"{name}\n{_code(name)}\n".encode())
    return found.hexdigest()[:16]


def imports_of(name: str) -> list[str]:
    """Modules under ROOTS that a module names in an import statement."""
    return [
        one
        for node in ast.walk(_tree(name))
        for one in _named(node)
        if one.startswith(ROOTS) and one != "policies.catalog"
    ]


def _named(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


@lru_cache(maxsize=256)
def _tree(name: str) -> ast.Module:
    path = _path(name)
    assert path is not None, "only modules that there are"
    return ast.parse(path.read_text(encoding="utf-8"))


def _code(name: str) -> str:
    """The module without docstrings and layout."""
    tree = _tree(name)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            del body[0]
    return ast.dump(tree)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


def _path(name: str) -> Path | None:
    path = REPOSITORY / Path(*name.split("."))
    for one in (path.with_suffix(".py"), path / "__init__.py"):
        if one.is_file():
            return one
    return None
