"""Which images a network takes: only the network itself knows, so one is tried; what it says becomes one line."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from unlabeled.errors import UserError

# what networks raise for images that they do not take: timm's checks, shapes that do not fit, maps that vanish
REFUSALS = (AssertionError, IndexError, RuntimeError, ValueError, ZeroDivisionError)
_ANY_SIZE = "dynamic_img_size"  # timm's option for it, where a network has it
_LARGER = 4  # doublings after which no larger image is looked for
_USUAL = 224  # what most networks were made for


def try_image(network: nn.Module, size: int) -> tuple[Any, str]:
    """Return what the network gives in evaluation mode for one black image [1, 3, size, size], and why it gives none.

    One of the two is None or "". Its mode stays as it is. A UserError of the network's own passes.
    """
    training = [module for module in network.modules() if module.training]
    like = next(network.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            return network.eval()(torch.zeros(1, 3, size, size, device=like.device, dtype=like.dtype)), ""
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        return None, (str(error) or type(error).__name__).splitlines()[0]
    finally:
        for module in training:
            module.training = True


def own_size(network: nn.Module) -> int | None:
    """Return the side of the images that the network was built for, in pixels; None if it takes several."""
    for module in network.modules():
        size = getattr(module, "img_size", None)
        if size:
            return int(size[0] if isinstance(size, tuple | list) else size)
    return None


def refuse_images(network: nn.Module, sizes: Mapping[int, str], name: str, *, earlier: bool = False) -> None:
    """Raise UserError, with the cure, unless the network takes square images of all `sizes` (pixels -> their key).

    name: what the network is called. earlier: it comes from an earlier run, whose options stand.
    """
    for size, key in sizes.items():
        try:
            _, problem = try_image(network, size)
        except UserError as error:
            problem = str(error)
        if problem:
            raise UserError(f"{key} is {size}, but {refusal(network, name, size, problem, key, len(sizes), earlier)}")


def refusal(network: nn.Module, name: str, size: int, problem: str, key: str, sizes: int = 1, earlier: bool = False,
            ) -> str:
    """Return in one line that the network takes no images of `size`, which it was, and the cure.

    problem: what the network says. key: the setting that asks for them. sizes: how many sizes are asked for.
    """
    own = own_size(network)
    none = f"{name} takes no images of {size} x {size}"
    if own in (None, size) or any(getattr(module, _ANY_SIZE, False) for module in network.modules()):
        sides = (*(size << k for k in range(1, _LARGER + 1)), _USUAL)
        other = next((side for side in sides if _takes(network, side)), None)
        cure = f"take others, such as {key}={other}" if other else "take others, or another network"
        return f"{none}: {problem.splitlines()[0].rstrip('.')}; {cure}"
    option = f"backbone.options={{img_size: {size}}}"
    if (sizes > 1 or earlier) and any(_ANY_SIZE in inspect.signature(type(module).__init__).parameters
                                      for module in network.modules() if hasattr(module, "pretrained_cfg")):
        several = f"backbone.options={{{_ANY_SIZE}: true}}"
        option = several if sizes > 1 else f"{option} or {several}"
    own_only = f"{none}: its own are {own} x {own}"
    if earlier:
        return f"{own_only}; set {key}={own}, or train it with {option}"
    return f"{own_only}; set {option}, or {key}={own}"


def _takes(network: nn.Module, size: int) -> bool:
    try:
        return not try_image(network, size)[1]
    except UserError:
        return False
