"""The order of the rooms (docs/architecture.md), held true by reading every import."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY, KERNELS = "mlprune_jax", "pallas_kernels"
# A room imports those before it.
ROOMS = (
    "errors",
    "files",
    "manifest",
    "config",
    "data",
    "models",
    "pruning",
    "inference",
    "training",
    "report",
    "pipeline",
    "cli",
    "__main__",
)
STRANGERS = {frozenset({"models", "pruning"})}  # neither imports the other, whatever their order
EXECUTE_ON_LOAD = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all"}  # of yaml

FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in (LIBRARY, KERNELS)
    for path in sorted((ROOT / package).rglob("*.py"))
}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[str]:
    """Full names of everything a module imports, inside functions and for type checkers too."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            # `from package import name` imports the module package.name where there is one.
            yield from (f"{source}.{alias.name}" for alias in node.names)


def imported_modules(module: str) -> set[str]:
    """The project's own modules among a module's imports, its own package left out."""
    found = set()
    for name in imports(module):
        while name and name not in FILES:
            name = name.rpartition(".")[0]
        if name and name != module:
            found.add(name)
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


LIBRARY_MODULES = [module for module in FILES if room(module) and module.startswith(LIBRARY)]
IMPORTS_BETWEEN_ROOMS = sorted(
    {
        (module, target)
        for module in LIBRARY_MODULES
        for target in imported_modules(module)
        if target.startswith(LIBRARY) and room(target) != room(module)
    }
)


def test_every_file_is_in_a_known_room():
    assert {room(module) for module in LIBRARY_MODULES} <= set(ROOMS)


@pytest.mark.parametrize(("module", "target"), IMPORTS_BETWEEN_ROOMS)
def test_a_room_imports_only_rooms_above_it(module, target):
    # The root is the lazy public list: importing it from inside would hide which room is meant.
    assert room(target), f"{module} imports the package root"
    assert ROOMS.index(room(target)) < ROOMS.index(room(module))
    assert frozenset({room(module), room(target)}) not in STRANGERS


def test_no_file_imports_itself_through_others():
    TopologicalSorter({module: imported_modules(module) for module in FILES if room(module)}).prepare()


@pytest.mark.parametrize("module", FILES)
def test_imports_from_outside(module):
    outside = {name.partition(".")[0] for name in imports(module)}
    assert not outside & EXECUTE_ON_LOAD
    assert "torch" not in outside
    if module.startswith(KERNELS):
        assert LIBRARY not in outside
    if "orbax" in outside:
        assert module == f"{LIBRARY}.training.checkpoint"


@pytest.mark.parametrize("module", FILES)
def test_nothing_loaded_is_executed(module):
    for node in ast.walk(tree(module)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in {"eval", "exec"}, f"line {node.lineno}"
        assert called not in {f"yaml.{name}" for name in UNSAFE_CALLS}, f"line {node.lineno}"
        for keyword in node.keywords:
            trusting = keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
            assert not trusting, f"line {node.lineno}"
