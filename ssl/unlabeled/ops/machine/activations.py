"""What a forward pass keeps in memory for the backward pass, by branches that methods name."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

ALL_ELSE = "all else"  # what belongs to no branch
_NOBODY: AbstractContextManager[None] = nullcontext()


class Kept:
    """The tensors that autograd keeps, and in which branch it began to; `others` and their views are not counted."""

    def __init__(self, others: Iterable[Tensor]) -> None:
        self._others = {x.untyped_storage().data_ptr() for x in others}
        self._branch, self._names = ALL_ELSE, list[str]()
        self._tensors: list[tuple[str, weakref.ref[Tensor]]] = []

    def sizes(self) -> dict[str, int]:
        """Return the bytes of what is kept at this moment, by branch in the order of the first forward pass.

        Tensors that share memory count once, where the first of them was kept, and as much as they hold alive.
        """
        sizes, counted = dict.fromkeys([*self._names, ALL_ELSE], 0), set(self._others)
        for name, reference in self._tensors:
            tensor = reference()
            storage = None if tensor is None else tensor.untyped_storage()  # None: that part of the graph is gone
            if storage is not None and storage.data_ptr() not in counted:
                counted.add(storage.data_ptr())
                sizes[name] += storage.nbytes()
        return sizes

    def pack(self, x: Tensor) -> Tensor:
        """Note a tensor that autograd keeps, and return what it keeps in its place: the same memory."""
        same = x.detach()  # x itself may be an output of the node that keeps it: a circle
        self._tensors.append((self._branch, weakref.ref(same)))
        return same

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Count what is kept inside for the branch `name`."""
        before, self._branch = self._branch, name
        if name not in self._names:
            self._names.append(name)
        try:
            yield
        finally:
            self._branch = before


_measuring: Kept | None = None


def branch(name: str) -> AbstractContextManager[None]:
    """Name what a forward pass computes inside, for the dry run's estimate of memory; the innermost name counts.

    It does nothing where nobody measures.
    """
    return _NOBODY if _measuring is None else _measuring.within(name)


def is_measured() -> bool:
    """Return whether a forward pass is one that is measured; then it does the most that an update may need."""
    return _measuring is not None


@contextmanager
def kept_for_backward(others: Iterable[Tensor] = ()) -> Iterator[Kept]:
    """Note what autograd keeps of what is computed inside; others: tensors that are there anyway, such as weights.

    Only while the results are alive is it kept: ask for its sizes inside. What is recomputed counts by its inputs.
    """
    global _measuring
    before, _measuring = _measuring, Kept(others)
    try:
        with saved_tensors_hooks(_measuring.pack, _unpack):
            yield _measuring
    finally:
        _measuring = before


def _unpack(x: Tensor) -> Tensor:
    return x
