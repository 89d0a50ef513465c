"""No file of somebody else's can run code: what could is in few places, named here with the reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "ssl" / "unlabeled"

# (file, what stands there) -> why nobody else's file is run by it
ALLOWED = {
    ("cli/sbatch.py", "subprocess"): "sbatch, with a script that this command has just written",
    ("cli/slurm.py", "import_module"): "a module of this package, by its own table",
    ("config/base/objects.py", "import_module"): "module:object of a recipe, card or protocol, after `config.consent`",
    ("engine/exports/names.py", "pickle"): "reads back what this process has just written",
    ("engine/exports/names.py", "torch.load"): "reads back what this process has just written; safe by default",
    ("engine/run/record.py", "subprocess"): "git, with arguments of its own",
    ("data/sources/tar/stream.py", "subprocess"): "the name of an exception",
    ("data/sources/tar/stream.py", "gopen"): "pipe:COMMAND of a card, after `config.consent`",
    ("data/parcel.py", "pickle"): "between this process and the loader processes that it has started, by socketpair",
    ("data/sources/torchvision_sets.py", "pickle"): "an Unpickler that knows numbers, and arrays of them, alone",
    ("passes/ml_dr_format.py", "pickle"): "an Unpickler that knows numbers, strings and plain containers alone",
    ("passes/convert_relabel.py", "pickle"): "the name of an exception",
}
_MODULES = {"pickle", "shelve", "marshal", "dill", "cloudpickle", "joblib", "subprocess", "runpy"}
_NAMES = {"eval", "exec", "compile", "__import__", "import_module", "gopen"}
_MEMBERS = {"os": {"system", "popen", "execv", "execve", "execvp", "execvpe", "spawnv", "spawnl", "posix_spawn"},
            "torch": {"hub", "package", "load"}, "np": {"load"}, "numpy": {"load"},
            "yaml": {"load", "load_all", "unsafe_load", "full_load", "Loader", "UnsafeLoader"},
            "jit": {"load"}, "export": {"load"}}  # fmt: skip


def is_true(call: ast.Call, name: str, value: bool) -> bool:
    return any(word.arg == name and isinstance(word.value, ast.Constant) and word.value.value is value
               for word in call.keywords)


def forms(tree: ast.AST) -> Iterator[str]:
    """Yield what could run code of a file: modules, functions, and `load` of arrays and tensors that is not restricted.
    """
    safe = set()
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load")) if is_true(
                    node, "weights_only", True):
                safe.add(node.func)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="np" | "numpy"), attr="load")) if is_true(
                    node, "allow_pickle", False):
                safe.add(node.func)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="yaml"), attr="load")) if any(
                    isinstance(word.value, ast.Name) and word.value.id.startswith("_") for word in node.keywords):
                safe.add(node.func)
            case ast.Import(names=names):
                yield from (alias.name for alias in names if alias.name.split(".")[0] in _MODULES)
            case ast.ImportFrom(module=module, names=names):
                yield from (alias.name for alias in names if alias.name in _NAMES or (module or "") in _MODULES)
            case ast.Call(func=ast.Name(id=name)) if name in _NAMES - {"import_module", "gopen"}:
                yield name
            case ast.Call(func=ast.Name(id="read_recipe"), args=[ast.BinOp(), *_]):
                yield "read_recipe of a run"
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=module), attr=attribute) if (
                    node not in safe and attribute in _MEMBERS.get(module, ())):
                yield f"{module}.{attribute}"
            case ast.Attribute(value=ast.Attribute(attr="jit" | "export" as module), attr="load"):
                yield f"{module}.load"
            case ast.Attribute(attr="import_module"):
                yield "import_module"


def test_only_named_places_could_run_code() -> None:
    there = {(path.relative_to(PACKAGE).as_posix(), form)
             for path in PACKAGE.rglob("*.py") for form in forms(ast.parse(path.read_text("utf-8")))}
    assert there - ALLOWED.keys() == set(), "say why in ALLOWED, or load it safely"
    assert ALLOWED.keys() - there == set(), "no longer there"


def test_the_scan_sees_what_it_must() -> None:
    seen = {
        "import torch\ntorch.load(f)": "torch.load",
        "import torch\ntorch.load(f, weights_only=False)": "torch.load",
        "import torch\nread = torch.load": "torch.load",
        "import torch\ntorch.jit.load(f)": "jit.load",
        "import numpy as np\nnp.load(f)": "np.load",
        "import numpy as np\nnp.load(f, allow_pickle=True)": "np.load",
        "import pickle": "pickle",
        "from pickle import loads": "loads",
        "import joblib": "joblib",
        "import os\nos.system('x')": "os.system",
        "import yaml\nyaml.load(f, Loader=yaml.Loader)": "yaml.load",
        "import importlib\nimportlib.import_module(n)": "import_module",
        "from importlib import import_module": "import_module",
        "from webdataset.gopen import gopen": "gopen",
        "eval('1')": "eval",
        "read_recipe(run / 'recipe.yaml')": "read_recipe of a run",
    }
    for text, form in seen.items():
        assert form in set(forms(ast.parse(text))), text
    for text in ("import torch\ntorch.load(f, weights_only=True)", "import numpy as np\nnp.load(f, allow_pickle=False)",
                 "model.eval()", "import re\nre.compile('x')", "read_recipe(name)"):
        assert not list(forms(ast.parse(text))), text
