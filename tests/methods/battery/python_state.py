"""What a method keeps outside of its `state_dict`: a training that changes it cannot be resumed."""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
import sys
import types
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unlabeled.engine.updater import Updater

_PLAIN = (bool, int, float, complex, str, bytes, bytearray, type(None), slice, range, itertools.count, itertools.cycle)
_LIBRARY = "unlabeled.augment", "unlabeled.backbones", "unlabeled.methods", "unlabeled.ops"
_OF_MODULES = frozenset(vars(nn.Module())) - {"training"}  # torch's own attributes of every module
_SAVED_OR_GIVEN = {"method", "model", "optimizer", "accelerator", "statistics", "state", "param_groups", "defaults"}
_DEPTH = 12


def python_state(updater: Updater) -> dict[str, str]:
    """Return everything reachable from the method that no `state_dict` has, by path: attributes of the method, of its
    modules and of the optimizer, closures, class attributes, and globals of the files that they come from."""
    walk = _Walk(set(map(id, updater.method.modules())))
    for name, module in updater.method.named_modules():
        walk.visit(f"method.{name}", module, 0)
    for name, owner in (("updater", updater), ("optimizer", updater.optimizer)):
        walk.visit(name, {key: x for key, x in vars(owner).items() if key not in _SAVED_OR_GIVEN}, 0)
    for file in walk.files:
        for name, value in list(vars(sys.modules[file]).items()):
            foreign = isinstance(value, types.FunctionType | type) and value.__module__ != file
            if not name.startswith("__") and not foreign:
                walk.visit(f"{file}.{name}", value, 0)
    return walk.found


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return the paths whose values differ."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def digest(x: Tensor) -> str:
    """Return a text that tells the bits of x from others."""
    return f"{x.dtype} {_hash(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())}"


class _Walk:
    """Visits what is reachable, once each; `saved` are the ids of the modules whose state is in a `state_dict`."""

    def __init__(self, saved: set[int]) -> None:
        self.saved, self.seen = saved, set[int]()
        self.found: dict[str, str] = {}
        self.keep: list[Any] = []  # an id is one object's as long as that lives
        self.files = [name for name in sys.modules if name.startswith(_LIBRARY)]

    def visit(self, path: str, value: Any, depth: int) -> None:
        """Put `value` and what it holds into `found`."""
        if isinstance(value, _PLAIN):
            self.found[path] = repr(value)
            return
        if id(value) in self.seen or depth > _DEPTH or isinstance(value, types.ModuleType):
            return
        self.seen.add(id(value))
        self.keep.append(value)
        if (known := _contents(value)) is not None:
            self.found[path] = known
        for name, part in self._parts(value):
            self.visit(f"{path}{name}", part, depth + 1)

    def _parts(self, value: Any) -> list[tuple[str, Any]]:
        """Return what `value` holds, with the ends of their paths."""
        if isinstance(value, Mapping):
            return [(f"[{key!r}]" if isinstance(key, _PLAIN) else f"[#{i}]", part)
                    for i, (key, part) in enumerate(list(value.items()))]
        if isinstance(value, list | tuple | set | frozenset | deque):
            return [(f"[{i}]", part) for i, part in enumerate(list(value))]
        if isinstance(value, nn.Module):
            return self._parts_of_module(value)
        if isinstance(value, types.MethodType):
            return [("", value.__func__), (".self", value.__self__)]
        if isinstance(value, functools.partial):
            return [(".func", value.func), (".args", value.args), (".keywords", value.keywords)]
        if isinstance(value, types.FunctionType):
            cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=False)
            held = [(f".{name}", cell.cell_contents) for name, cell in cells if _filled(cell)]
            return [*held, (".defaults", value.__defaults__), *_attributes(value)] if self._own(value) else []
        if isinstance(value, types.GeneratorType):
            frame = value.gi_frame
            return [(".line", frame.f_lasti), *((f".{name}", x) for name, x in frame.f_locals.items())] if frame else []
        if isinstance(value, type):
            return _attributes(value) if self._own(value) else []
        return _attributes(value)

    def _parts_of_module(self, module: nn.Module) -> list[tuple[str, Any]]:
        self._add_file(type(module))
        own = [(f".{name}", x) for name, x in vars(module).items() if name not in _OF_MODULES]
        if id(module) in self.saved:
            unsaved = module._non_persistent_buffers_set
            return [*own, *((f".{name}", x) for name, x in module._buffers.items() if name in unsaved)]
        state = itertools.chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        return [*own, *((f".{name}", x) for name, x in state),
                *((f".{name}", child) for name, child in module.named_children())]

    def _add_file(self, kind: type) -> None:
        for base in kind.__mro__:
            if base.__module__ not in self.files and not base.__module__.startswith(("torch", "timm", "builtins")):
                self.files.append(base.__module__)

    def _own(self, value: Any) -> bool:
        return value.__module__ in self.files


def _contents(value: Any) -> str | None:
    """Return what tells one content of arrays, generators and lengths from another; None: only its parts do."""
    if isinstance(value, Tensor):
        return digest(value)
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {_hash(np.ascontiguousarray(value))}" if value.dtype != object else None
    if isinstance(value, torch.Generator):
        return _hash(value.get_state().numpy())
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state())
    if isinstance(value, random.Random):
        return repr(value.getstate())
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, Mapping | list | set | deque) else None


def _hash(array: np.ndarray) -> str:
    return hashlib.blake2b(array.tobytes(), digest_size=8).hexdigest()


def _filled(cell: types.CellType) -> bool:
    try:
        return bool(cell.cell_contents is not None)
    except ValueError:
        return False


def _attributes(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Tensor | np.ndarray):
        return []
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if hasattr(value, name)]
    held = {name: getattr(value, name) for name in slots if not name.startswith("__")}
    held |= getattr(value, "__dict__", {})
    return [(f".{name}", x) for name, x in held.items() if not name.startswith("__") and name != "_abc_impl"]
