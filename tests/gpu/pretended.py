"""A CUDA device that is only pretended: tensors compute on the CPU but say that they are elsewhere.

So faults of placement show on any machine: an operation on tensors of both places, a tensor of the CPU in a collective
of NCCL, and what makes the CPU wait for the device (a value that is read, a copy from memory that is not page-locked).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_map_only

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")

_T = torch.Tensor
_PLACE = {_T.device.__get__: (CPU, CUDA), _T.is_cuda.__get__: (False, True)}
# hand values from one place to the other, or take an index from the CPU
_CROSSING = {_T.copy_, _T.__setitem__, _T.__getitem__, _T.to, _T.index_put_}
# where a 0-d tensor of the CPU is no mere number
_STRICT = {torch.cat, torch.stack, _T.index_copy_, _T.index_select, _T.scatter, _T.scatter_, _T.gather, torch.gather}
_READING = {
    _T.item, _T.tolist, _T.__bool__, _T.__float__, _T.__int__, _T.__index__, _T.cpu, _T.nonzero, torch.nonzero,
    torch.equal, _T.equal, torch.unique, _T.unique, torch.masked_select, _T.masked_select, torch.bincount, _T.bincount,
    _T.new_tensor,
}  # fmt: skip


class Elsewhere(torch.Tensor):
    """A tensor of the CPU that says it is on a GPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _answer(func, args, kwargs or {})


class PretendedCuda(TorchFunctionMode):
    """While active, `cuda` is a device; `waits` counts by name what makes the CPU wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _waits(func, args, kwargs):
            self.waits[resolve_name(func) or str(func)] += 1
        return _answer(func, args, kwargs)


def _waits(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    if func in _READING or (func is _T.to and CPU in args):
        return any(isinstance(x, Elsewhere) for x in _tensors(args, kwargs))
    if func not in (torch.tensor, _T.to) or not _to_cuda(func, args, kwargs) or isinstance(args[0], Elsewhere):
        return False
    locked = getattr(args[0], "page_locked", False) and kwargs.get("non_blocking", False)
    return func is torch.tensor or (func is _T.to and not locked)


def _answer(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = _tensors(args, kwargs)
    there = [isinstance(x, Elsewhere) for x in tensors]
    if func in _PLACE:
        return _PLACE[func][there[0]]
    if func is torch._has_compatible_shallow_copy_type:
        return there[0] == there[1]
    if func is _T.pin_memory:
        assert not there[0], "only memory of the CPU can be page-locked"
        locked = args[0].clone()
        locked.page_locked = True
        return locked
    if func is _T.numpy and there[0]:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    _refuse_mixture(func, tensors, there)
    to_cuda = _to_cuda(func, args, kwargs)
    to_cpu = func is _T.cpu or (func is _T.to and (CPU in args or "cpu" in args))
    if to_cuda:
        args, kwargs = tree_map_only(torch.device, lambda device: CPU, (args, kwargs))
    with torch._C.DisableTorchFunctionSubclass():
        found = func(*args, **kwargs)
        if not isinstance(found, torch.Tensor | tuple | list):
            return found
        if to_cuda or (any(there) and not to_cpu):
            return tree_map_only(torch.Tensor, elsewhere, found)
        return tree_map_only(Elsewhere, lambda x: x.as_subclass(torch.Tensor), found)


def _tensors(args: Any, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for x in (*args, *kwargs.values()):
        if isinstance(x, torch.Tensor):
            found.append(x)
        elif isinstance(x, tuple | list):
            found += [each for each in x if isinstance(each, torch.Tensor)]
    return found


def elsewhere(x: torch.Tensor) -> torch.Tensor:
    """Say of a tensor that it is on the GPU."""
    return x if isinstance(x, Elsewhere) else x.as_subclass(Elsewhere)


def _to_cuda(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    if func is torch._C._nn._parse_to:  # reads the arguments of Module.to
        return False
    return any(isinstance(x, torch.device) and x.type == "cuda" for x in (*args, *kwargs.values()))


def _refuse_mixture(func: Any, tensors: Sequence[torch.Tensor], there: Sequence[bool]) -> None:
    """Raise RuntimeError as torch does for tensors of both places."""
    if all(there) or not any(there) or (func in _CROSSING and (there[0] or func is not _T.__getitem__)):
        return
    if _in_backward():
        return
    with torch._C.DisableTorchFunctionSubclass():
        lost = any(x.dim() for x, elsewhere in zip(tensors, there, strict=True) if not elsewhere)
    if lost or func in _STRICT:
        raise RuntimeError(f"{resolve_name(func) or func}: tensors on cuda:0 and cpu")


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() >= 0  # autograd hands gradients on that say nothing of a place


@contextlib.contextmanager
def pretended_cuda(monkeypatch: pytest.MonkeyPatch, processes: int = 1) -> Iterator[PretendedCuda]:
    """Let runs that start here compute on a pretended GPU, as the first of `processes` that all hold the same."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # where there is a real one
    monkeypatch.setattr(Accelerator, "device", CUDA)
    monkeypatch.setattr(Accelerator, "prepare_model", lambda self, model: model)  # it would move it once more
    if processes > 1:
        _pretend_nccl(monkeypatch, processes)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with PretendedCuda() as mode:
            yield mode
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def _pretend_nccl(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    def sent(x: torch.Tensor) -> None:
        assert isinstance(x, Elsewhere) or _in_backward(), "NCCL takes no tensors of the CPU"

    def all_gather(parts: list[torch.Tensor], x: torch.Tensor) -> None:
        for part in parts:
            sent(part)
            part.copy_(x)
        sent(x)

    def all_reduce(x: torch.Tensor, op: Any = dist.ReduceOp.SUM) -> None:
        sent(x)
        if op == dist.ReduceOp.SUM:
            x.mul_(processes)

    def broadcast(x: torch.Tensor, source: int) -> None:
        sent(x)

    def all_gather_object(parts: list[Any], x: Any) -> None:
        parts[:] = [x] * len(parts)

    def gather(x: torch.Tensor, parts: list[torch.Tensor] | None = None) -> None:
        all_gather(parts or [], x)

    answers = {"is_initialized": lambda: True, "get_world_size": lambda: processes, "get_rank": lambda: 0,
               "broadcast_object_list": lambda box: None}  # fmt: skip
    for f in (all_gather, all_reduce, broadcast, all_gather_object, gather):
        answers[f.__name__] = f
    for name, answer in answers.items():
        monkeypatch.setattr(dist, name, answer)
