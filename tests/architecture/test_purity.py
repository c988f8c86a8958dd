"""`policies` thinks and `serve_app` touches: what keeps that true."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "policies").rglob("*.py"))
OURS = sorted(path for top in ("policies", "serve_app") for path in (ROOT / top).rglob("*.py"))
OUTSIDE = {"ray", "vllm", "torch", "pynvml", "prometheus_client", "pydantic", "pyRAPL", "serve_app"}
# numba compiles the simulator's inner loop, and is allowed there alone.
ALLOWED = {"numpy", "policies"}
CLOCKS = {"time", "secrets", "uuid"}  # datetime parses too: its clock methods are refused below
TOUCHING = {"open", "input", "print", "exec", "eval", "__import__"}
TOUCHING_METHODS = {
    "read_text", "write_text", "read_bytes", "write_bytes", "now", "utcnow", "today", "monotonic",
    "perf_counter", "getenv", "environ", "urandom",
}  # fmt: skip
MOST_LINES = 400


def names(path):
    return str(path.relative_to(ROOT))


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module


def faults(source, *, simulator=False):
    """What in `source` breaks purity, as text."""
    tree = ast.parse(source)
    allowed = ALLOWED | ({"numba"} if simulator else set())
    for module in imports(tree):
        top = module.split(".")[0]
        if top not in allowed and (top not in sys.stdlib_module_names or top in CLOCKS | {"os"}):
            yield f"imports {module}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in TOUCHING:
                yield f"calls {node.func.id}() on line {node.lineno}"
        elif isinstance(node, ast.Attribute) and node.attr in TOUCHING_METHODS:
            yield f"uses .{node.attr} on line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=names)
def test_policies_touch_nothing(path):
    assert list(faults(path.read_text(), simulator="sim" in path.parts)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import ray",
        "from vllm.v1 import core",
        "import time",
        "from datetime import datetime\nx = datetime.now()",
        "import os",
        "import numba",
        "open('x')",
        "p.read_text()",
        "a = environ.os.environ",
        "from serve_app import app",
        "import scipy",
    ],
)
def test_the_check_itself_sees(source):
    assert list(faults(source))


def test_core_imports_no_other_layer():
    for path in (ROOT / "policies" / "core").glob("*.py"):
        for module in imports(ast.parse(path.read_text())):
            if module.startswith("policies"):
                assert module.startswith("policies.core"), f"{names(path)} imports {module}"
    for path in (ROOT / "policies" / "model").glob("*.py"):
        for module in imports(ast.parse(path.read_text())):
            if module.startswith("policies"):
                assert module.startswith(("policies.core", "policies.model")), names(path)


BLOCKED = """
import importlib, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, {root!r})
for name in {modules!r}:
    importlib.import_module(name)
loaded = {blocked!r} & {{name.split(".")[0] for name in sys.modules}}
assert not loaded, loaded
print(len({modules!r}))
"""


def run_blocked(modules):
    script = BLOCKED.format(blocked=OUTSIDE, root=str(ROOT), modules=modules)
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )


def test_policies_import_without_any_of_the_vendors():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
    ]
    done = run_blocked(modules)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(FILES) > 10


def test_the_refusal_works():
    done = run_blocked(["policies.catalog", "pydantic"])
    assert done.returncode != 0
    assert "refused: pydantic" in done.stderr


def test_no_file_is_longer_than_it_can_be_read():
    lines = {names(path): len(path.read_text().splitlines()) for path in OURS}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
