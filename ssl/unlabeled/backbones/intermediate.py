"""Features from the inside of any backbone, by the name of the module that gives them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from torch import Tensor, nn

from unlabeled.errors import UserError, did_you_mean, nearest


class Intermediate(nn.Module):
    """The output of one inner module: [b, 3, S, S] -> a map [b, C, H, W], tokens [b, T, C] or a vector [b, C].

    Layers behind that module do not run. Holds the backbone itself, so that weights are shared with it; copy it for a
    network that stands alone. Raises UserError for an unknown name.
    """

    def __init__(self, backbone: nn.Module, name: str) -> None:
        super().__init__()
        refuse_unknown(backbone, name)
        self.backbone, self.name = backbone, name

    def forward(self, x: Tensor) -> Tensor:
        """Return the module's output. Raises UserError if the network does not call it or it gives no tensor."""
        return outputs(self.backbone, [self.name], x)[self.name]


def outputs(backbone: nn.Module, wanted: Sequence[str], x: Tensor, *, whole: bool = False) -> dict[str, Tensor]:
    """Return the outputs of the inner modules `wanted` in one pass, which ends when all are known.

    whole: run to the end and return the backbone's own output too, as "". Raises UserError if a module is not called or
    gives no tensor.
    """
    tensors: dict[str, object] = {}

    def keep(name: str, module: nn.Module, inputs: object, output: object) -> None:
        tensors[name] = output
        if not whole and len(tensors) == len(set(wanted)):
            raise _Complete

    handles = [backbone.get_submodule(name).register_forward_hook(partial(keep, name)) for name in set(wanted)]
    try:
        with _without_recomputing(backbone), suppress(_Complete):
            tensors[""] = backbone.forward(x)  # not the call: a compiled network would not stop inside
    finally:
        for handle in handles:
            handle.remove()
    return {name: _tensor(backbone, name, tensors) for name in [*wanted, *([""] if whole else [])]}


def refuse_unknown(backbone: nn.Module, name: str) -> None:
    """Raise UserError, with the nearest names, if the backbone has no module `name`."""
    modules = [inner for inner, _ in backbone.named_modules() if inner]
    if name not in modules:
        question = did_you_mean(nearest(name, modules, 3))
        raise UserError(f"the backbone has no module '{name}'.{question} Its blocks: {', '.join(names(backbone))}")


def _tensor(backbone: nn.Module, name: str, found: Mapping[str, object]) -> Tensor:
    others = f"choose a part of it, or one of: {', '.join(names(backbone))}"
    if name not in found:
        raise UserError(f"the network does not call its module '{name}' as a whole; {others}")
    output = found[name]
    if not isinstance(output, Tensor):
        raise UserError(f"module '{name}' gives a {type(output).__name__} and no tensor; {others}")
    if not name or output.ndim < 4:
        return output
    last = any(getattr(module, "output_fmt", None) == "NHWC" for module in backbone.modules())  # timm's Swin and kin
    return output.permute(0, 3, 1, 2) if last else output


def names(backbone: nn.Module) -> list[str]:
    """Return the modules worth taking features from, in order: the network's own list, else its parts with weights."""
    listed = [info["module"] for info in getattr(backbone, "feature_info", ())]
    modules = {name for name, _ in backbone.named_modules()}
    found = [name for name in dict.fromkeys(listed) if name in modules]
    return found or [name for name, child in backbone.named_children() if any(True for _ in child.parameters())]


class _Complete(Exception):
    """All that is wanted is known."""


@contextmanager
def _without_recomputing(backbone: nn.Module) -> Iterator[None]:
    """Switch gradient checkpointing off: it cannot be left in the middle, and timm's passes over whole stages."""
    on = [module for module in backbone.modules() if getattr(module, "grad_checkpointing", False)]
    for module in on:
        module.grad_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in on:
            module.grad_checkpointing = True  # type: ignore[assignment]
