"""The shape of the code: which package imports which, no circles, no long functions, every public name documented."""

from __future__ import annotations

import ast
import doctest
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from tests.conftest import ROOT

MAY_IMPORT = {
    "raddraft": {"raddraft"},
    "encoder": {"raddraft", "encoder"},
    "metrics": {"raddraft", "metrics"},
    "generator": {"raddraft", "encoder", "metrics", "generator"},
    "scripts": {"raddraft", "encoder", "metrics", "generator"},
}
PACKAGES = {*MAY_IMPORT, "configs", "benchmarks", "tests"}
FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
TRAINING_LOOPS = {
    "generator/train.py:train",
    "generator/reward_stage.py:learn_from_rewards",
    "encoder/pretrain.py:pretrain",
}


def name_of(path: Path) -> str:
    """Dotted name of a module."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Modules of this project that a file imports anywhere: at its top, in functions, for types."""
    for node in ast.walk(tree_of(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            module = node.module or ""
            names = [
                f"{module}.{alias.name}" if f"{module}.{alias.name}" in MODULES else module for alias in node.names
            ]
        yield from (name for name in names if name.partition(".")[0] in PACKAGES)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_what_they_may(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        if path.relative_to(ROOT).parts[0] == package
        for name in imports(path)
        if name.partition(".")[0] not in MAY_IMPORT[package]
    ]
    assert wrong == []


def test_no_circular_imports() -> None:
    graph = {name: {one for one in imports(path) if one in MODULES and one != name} for name, path in MODULES.items()}
    while leaves := [name for name, needed in graph.items() if not needed & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert sorted(graph) == [], "these import each other, or modules that do"


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    yield from (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef))


def test_no_function_is_longer_than_80_lines() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{one.name}": one.end_lineno - one.lineno + 1  # type: ignore[operator]
        for path in FILES
        for one in functions(path)
    }
    assert {name: lines for name, lines in long.items() if lines > 80 and name not in TRAINING_LOOPS} == {}


def test_a_file_over_400_lines_says_why() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in FILES
        if len(path.read_text(encoding="utf-8").splitlines()) > 400
        and "one file" not in (ast.get_docstring(tree_of(path)) or "").lower()
    ]
    assert silent == [], 'the docstring is to say why it is "one file"'


def test_scripts_are_thin() -> None:
    lengths = {
        path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "scripts").glob("*.py")
    }
    assert {name: lines for name, lines in lengths.items() if lines > 100} == {}


def test_every_public_function_class_and_module_has_a_docstring() -> None:
    missing = []
    for path in FILES:
        tree = tree_of(path)
        if tree.body and not ast.get_docstring(tree):
            missing.append(str(path.relative_to(ROOT)))
        for node in tree.body:
            inner = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else []
            for one in (node, *inner):
                if not isinstance(one, ast.FunctionDef | ast.ClassDef) or one.name.startswith("_"):
                    continue
                standard = one is not node and one.name in {"forward", "to", "pin_memory", "main"}
                if not ast.get_docstring(one) and not standard:
                    missing.append(f"{path.relative_to(ROOT)}:{one.name}")
    assert missing == []


def test_every_library_that_is_imported_is_declared() -> None:
    import sys
    import tomllib
    from importlib.metadata import packages_distributions

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = ("read", "serve", "clinic", "qlora", "jxl", "trackers")
    extras = [one for name in names for one in project["optional-dependencies"][name]]
    declared = {
        one.partition(">")[0].partition("[")[0].lower().replace("_", "-") for one in project["dependencies"] + extras
    }
    distributions = packages_distributions()
    undeclared = {}
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            modules = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {module.partition(".")[0] for module in modules} - PACKAGES - sys.stdlib_module_names:
                names = {name.lower().replace("_", "-") for name in distributions.get(top, [top])}
                if not names & declared:
                    undeclared[top] = str(path.relative_to(ROOT))
    assert undeclared == {}


EXAMPLES = [name for name, path in MODULES.items() if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("module", EXAMPLES)
def test_the_examples_of_the_docstrings_run(module: str) -> None:
    found = doctest.testmod(import_module(module))
    assert found.attempted
    assert not found.failed
