"""What is imported on the way to a verb. `make lint` holds who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib import import_module

import pytest
from helpers.checkout import modules

TORCH_FREE = (
    "mdlstm_tk.io",
    "mdlstm_tk.runtime",
    *(f"mdlstm_tk.cli.{name}" for name in ("app", "infer", "read")),
)
HEAVY = ("torch", "onnx", "onnxscript", "numba")


def statements(node: ast.AST, *, nested: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements below a node, without those for type checkers alone.

    Args:
        nested: include those inside functions, which run when the function is called.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for branch in child.orelse:
                yield from statements(branch, nested=nested)
        elif nested or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(child, nested=nested)


@cache
def imports(module: str, *, nested: bool = True) -> frozenset[str]:
    """The modules that a module imports: ours by their exact names, others as they are written."""
    result = set()
    for statement in statements(ast.parse(modules()[module].read_text(encoding="utf-8")), nested=nested):
        if isinstance(statement, ast.Import):
            result |= {alias.name for alias in statement.names}
        else:
            assert statement.level == 0 and statement.module, f"{module} has a relative import"
            names = {f"{statement.module}.{alias.name}" for alias in statement.names}
            submodules = names & modules().keys()
            result |= submodules
            if names != submodules:
                result.add(statement.module)
    return frozenset(result)


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def reached(start: Iterable[str], *, nested: bool) -> set[str]:
    """The modules that are imported when these are, with the packages that they lie in."""
    result: set[str] = set()
    waiting = list(start)
    while waiting:
        module = waiting.pop()
        if module in modules() and module not in result:
            result.add(module)
            parent = module.rpartition(".")[0]
            waiting += [*imports(module, nested=nested), *([parent] if parent else [])]
    return result


def heavy_imports(start: Iterable[str], *, nested: bool) -> dict[str, set[str]]:
    """Which of the modules that are reached import a package that takes long, and which package."""
    heavy = {
        module: {name for name in imports(module, nested=nested) if within(name, HEAVY)}
        for module in reached(start, nested=nested)
    }
    return {module: names for module, names in heavy.items() if names}


def test_infer_imports_neither_torch_nor_onnx() -> None:
    """Nor does any module that it imports on the way, inside functions or not."""
    start = [module for module in modules() if within(module, TORCH_FREE)]
    assert heavy_imports(start, nested=True) == {}
    assert "mdlstm_tk.errors" in reached(start, nested=True)


def test_the_command_line_starts_without_torch_and_onnx() -> None:
    """A verb imports them when it runs, so that `mdlstm --help` is fast and works without them."""
    verbs = {module for module in modules() if within(module, ("mdlstm_tk.cli",))}
    assert heavy_imports(verbs, nested=False) == {}


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: imports(module, nested=False) & modules().keys() for module in modules()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which shows the circle


PACKAGES = [name for name, path in modules().items() if path.name == "__init__.py"]


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_exist(package: str) -> None:
    """Also those that are imported when somebody asks for them."""
    module = import_module(package)
    names = getattr(module, "__all__", [])
    assert len(names) == len(set(names))
    assert [name for name in names if not hasattr(module, name)] == []
    assert package != "mdlstm_tk" or dir(module) == sorted(names)


def test_the_layer_registers_the_operator_and_the_package_imports_no_torch() -> None:
    code = """
import sys
import mdlstm_tk, mdlstm_tk.runtime
assert "torch" not in sys.modules
import mdlstm_tk.layer, torch
assert torch.ops.mdlstm.wavefront.default and torch.ops.mdlstm.wavefront_backward.default
assert not {"numba", "torch.utils.flop_counter", "onnx"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
