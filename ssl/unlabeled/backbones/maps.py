"""Feature maps of any backbone that has them: the last one, and those of inner blocks, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from unlabeled.errors import UserError
from unlabeled.ops.machine.compiler import features


def maps(backbone: nn.Module, x: Tensor, blocks: Sequence[str] = ()) -> list[Tensor]:
    """Return the maps [b, C, H, W] of the modules `blocks` and then the last one, for images x [b, 3, S, S].

    Networks of timm whose maps have their channels last (Swin and kin) are told by what they say of themselves. Raises
    UserError if the network has no map, or recomputes its activations, which passes over whole blocks.
    """
    if not hasattr(backbone, "forward_features"):
        raise UserError(f"{type(backbone).__name__} has no feature map; use a ResNet, ConvNeXt or Swin")
    levels: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, inputs: object, output: Tensor) -> None:
        levels[name] = output

    handles = [backbone.get_submodule(name).register_forward_hook(partial(keep, name)) for name in blocks]
    try:
        levels["last"] = features(backbone, x, eager=bool(blocks))  # the hooks would break a graph into pieces
    finally:
        for handle in handles:
            handle.remove()
    if len(levels) <= len(blocks):
        raise UserError("maps of inner blocks exclude backbone.grad_checkpointing, which passes over whole blocks")
    outputs = [levels[name] for name in [*blocks, "last"]]
    for output in outputs:
        if output.ndim != 4:
            raise UserError(f"the network gives {list(output.shape)}, no feature map; use a ResNet, ConvNeXt or Swin")
    channels_last = any(getattr(module, "output_fmt", None) == "NHWC" for module in backbone.modules())
    return [x.permute(0, 3, 1, 2) for x in outputs] if channels_last else outputs
