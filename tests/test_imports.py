"""Imports point one way: read from the source text, so that lazy and type-only imports count too."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "ssl"
# from below to above; packages of one tier do not import one another
TIERS = [{"errors"}, {"config"}, {"ops"}, {"data", "augment", "backbones"}, {"methods"}, {"engine"}, {"report"},
         {"evaluation", "passes"}, {"cli"}]  # fmt: skip
# the rooms of a package from below to above ("" for its own files); one folder holds files of one subject
ROOMS = {
    "config": [{"yaml", "base"}, {"", "protocols", "passes", "consent"}, {"jobs"}],
    "ops": [{"machine"}, {""}, {"measures", "targets"}],
    "data": [{"sources.files"}, {"sources"}, {"sources.tar", "sources.dense", "sources.video", "records"}, {""},
             {"packing"}],
    "augment": [{""}, {"replay"}],
    "backbones": [{""}, {"elastic", "video"}],
    "methods": [{""}, {"cvrl", "feature_distil", "poa", "probe", "reinforcement", "relabel", "ssld"}],
    "engine": [{"optim"}, {"public"}, {"run"}, {"exports"}, {"passes", "nonfinite"}, {"nodes"}, {""}, {"replay"}],
    "evaluation": [{"vectors"}, {""}, {"dense"}],
    "passes": [{""}, {"mining"}],
}
TIER = {package: number for number, packages in enumerate(TIERS) for package in packages}
HEAVY = {"torch", "torchvision", "timm", "accelerate", "numpy", "sklearn", "webdataset", "PIL", "matplotlib", "rich"}
# all that others see of a method; the rest is reached through the table
CONTRACT = "unlabeled.methods.base"


def modules():
    """Return module name -> syntax tree."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(), str(path))
    return found


MODULES = modules()


def imports(tree, top_level_only=False):
    """Yield every absolute module name that is imported; `from a import b` gives a.b where that is a module."""
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrow"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def own(tree):
    """Yield the modules of this package that a tree imports."""
    return {name for name in imports(tree) if name.startswith("unlabeled")}


def is_folder(module):
    """Return whether a module is the empty __init__ of a folder."""
    return (SOURCE / module.replace(".", "/")).is_dir()


def package(module):
    """Return the part of the package that a module belongs to; the package itself is 'unlabeled'."""
    return [*module.split("."), "unlabeled"][1]


def room(module):
    """Return the folders between a package and a module of it, dotted; "" for the package's own files."""
    return ".".join(module.split(".")[2:-1])


def test_every_part_has_its_tier():
    assert {package(name) for name in MODULES} - {"unlabeled"} == set(TIER)
    rooms = {(package(n), room(n)) for n in MODULES if not is_folder(n) and room(n)}
    assert rooms == {(part, name) for part, tiers in ROOMS.items() for tier in tiers for name in tier if name}


@pytest.mark.parametrize("name", [n for n in MODULES if package(n) in ROOMS and not is_folder(n)])
def test_imports_between_rooms_go_down(name):
    tier = {inner: number for number, rooms in enumerate(ROOMS[package(name)]) for inner in rooms}
    for other in own(MODULES[name]):
        if package(other) == package(name) and room(other) != room(name):
            assert tier[room(other)] <= tier[room(name)], f"{name} imports {other}"


def test_a_folder_holds_files_of_one_subject():
    files = {}
    for path in SOURCE.rglob("*.py"):
        files.setdefault(path.parent, []).append(path.name)
    kinds = {"methods", "cli"}  # as many as there are methods and commands
    assert {f.name: len(n) - 1 for f, n in files.items() if len(n) - 1 > 14 and f.name not in kinds} == {}


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name):
    here = package(name)
    for other in own(MODULES[name]):
        there = package(other)
        if there in (here, "unlabeled"):
            continue
        assert TIER[there] < TIER[here], f"{name} imports {other}"


@pytest.mark.parametrize("name", MODULES)
def test_methods_are_reached_through_the_table(name):
    if package(name) != "methods":
        assert {other for other in own(MODULES[name]) if package(other) == "methods"} <= {CONTRACT}


def test_no_circle():
    graph = {name: own(tree) - {name} for name, tree in MODULES.items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name):], name])
        if name not in done:
            path.append(name)
            for other in graph.get(name, ()):
                visit(other)
            done.add(path.pop())

    for name in graph:
        visit(name)


CONFIGURATION = [n for n in MODULES if package(n) in ("errors", "config") or n.endswith(("_config", ".config"))]


@pytest.mark.parametrize("name", CONFIGURATION)
def test_configuration_needs_no_torch(name):
    heavy = {other.split(".")[0] for other in imports(MODULES[name])} & HEAVY
    assert not heavy
    assert {package(other) for other in own(MODULES[name])} <= {"config", "errors", "unlabeled"}


@pytest.mark.parametrize("name", [n for n in MODULES if package(n) == "cli"])
def test_commands_import_lazily(name):
    names = set(imports(MODULES[name], top_level_only=True))
    assert not {other.split(".")[0] for other in names} & (HEAVY | {"pydantic", "yaml"})
    assert {package(other) for other in names if other.startswith("unlabeled")} <= {"cli", "errors", "unlabeled"}
