"""Which images a network takes: only the network itself knows, so one is tried; what it says becomes one line."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from unlabeled.backbones.build import build_backbone
from unlabeled.config.recipe import Backbone
from unlabeled.errors import UserError

# what networks raise for images that they do not take: timm's checks, shapes that do not fit, maps that vanish
REFUSALS = (AssertionError, IndexError, RuntimeError, ValueError, ZeroDivisionError)
_ANY_SIZE = "dynamic_img_size"  # timm's option for it, where a network has it
_LARGER = 4  # doublings after which no larger image is looked for
_USUAL = 224  # what most networks were made for


def input_shape(size: int, frames: int | None = None) -> tuple[int, ...]:
    """Return the shape of what a network takes of one sample: [3, size, size], or of a clip [3, frames, size, size]."""
    return (3, size, size) if frames is None else (3, frames, size, size)


def try_image(network: nn.Module, size: int, frames: int | None = None) -> tuple[Any, str]:
    """Return what the network gives in evaluation mode for one black image [1, 3, size, size], and why it gives none.

    One of the two is None or "". frames: of a black clip in place of the image. Its mode stays as it is. A UserError of
    the network's own passes.
    """
    training = [module for module in network.modules() if module.training]
    like = next(network.parameters(), torch.zeros(()))
    try:
        with torch.no_grad():
            black = torch.zeros(1, *input_shape(size, frames), device=like.device, dtype=like.dtype)
            return network.eval()(black), ""
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        return None, (str(error).strip() or type(error).__name__).splitlines()[0]
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


def refuse_images(network: nn.Module, sizes: Mapping[int, str], name: str, cfg: Backbone | None = None, *,
                  frames: int | None = None) -> None:
    """Raise UserError, with the cure, unless the network takes square images of all `sizes` (pixels -> their key).

    name: what the network is called. cfg: what it was built from; None if it is of an earlier run, whose options stand.
    frames: of clips in place of images.
    """
    for size, key in sizes.items():
        try:
            _, problem = try_image(network, size, frames)
        except UserError as error:  # of a network that knows its sizes; one cut short says what else is wrong with it
            if cfg is None:
                raise
            problem = str(error)
        if problem and frames is not None:
            raise UserError(f"{name} takes no clips of {frames} frames of {size} x {size}: "
                            f"{problem.splitlines()[0].rstrip('.')}; a network for clips is r3d50, or r3d_tiny")
        if problem:
            raise UserError(f"{key} is {size}, but {refusal(network, name, size, problem, key, len(sizes), cfg)}")


def refusal(network: nn.Module, name: str, size: int, problem: str, key: str, sizes: int = 1,
            cfg: Backbone | None = None) -> str:
    """Return in one line that the network takes no images of `size`, which it was, and the cure.

    problem: what the network says. key: the setting that asks for them. sizes: how many are asked for. cfg: see above.
    """
    own = own_size(network) or (_published_size(network, cfg) if cfg else None)
    none = f"{name} takes no images of {size} x {size}"
    anyhow = any(getattr(module, _ANY_SIZE, False) for module in network.modules())
    several = f"backbone.options.{_ANY_SIZE}=true" if _has_option(network, _ANY_SIZE) else ""
    single = f"backbone.options.img_size={size}"
    if own not in (None, size) and not anyhow:
        if cfg is None:
            return f"{none}: its own are {own} x {own}; set {key}={own}, or train it with {single}" + (
                f" or {several}" if several else "")
        option = several if sizes > 1 and several else single if _is_cured(cfg, size) else ""
        if option:
            return f"{none}: its own are {own} x {own}; set {option}, or {key}={own}"
    sides = (*(size << k for k in range(1, _LARGER + 1)), own or _USUAL)
    other = next((side for side in sides if side != size and _takes(network, side)), None)
    cure = f"take others, such as {key}={other}" if other else "take others, or another network"
    return f"{none}: {problem.splitlines()[0].rstrip('.')}; {cure}"


def _has_option(network: nn.Module, option: str) -> bool:
    return any(option in inspect.signature(type(module).__init__).parameters
               for module in network.modules() if hasattr(module, "pretrained_cfg"))


def _published_size(network: nn.Module, cfg: Backbone) -> int | None:
    """Return the size of a network that has the option but does not keep its value (GCViT, Hiera ...)."""
    if not _has_option(network, "img_size"):
        return None
    return int(cfg.options.get("img_size") or network.pretrained_cfg["input_size"][-1])  # type: ignore[index]


def _is_cured(cfg: Backbone, size: int) -> bool:
    """Return whether the network takes images of `size` once it is built for them; some do not."""
    with torch.device("meta"):
        try:
            return _takes(build_backbone(cfg.model_copy(update={"options": {**cfg.options, "img_size": size}})), size)
        except UserError:
            return False


def _takes(network: nn.Module, size: int) -> bool:
    try:
        return not try_image(network, size)[1]
    except UserError:
        return False
