"""Which modules are norms, and which of them keep statistics of batches: one answer for all that ask."""

from __future__ import annotations

from timm.layers.norm_act import FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torchvision.ops import FrozenBatchNorm2d

_TORCHS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_CONSTANT = (FrozenBatchNorm2d, FrozenBatchNormAct2d)


def is_norm(module: nn.Module) -> bool:
    """Return whether the module's own parameters are the scale and shift of a norm.

    Norms are torch's with all that is derived from them, what keeps running statistics, and what is named so and has
    only vectors for parameters (RmsNorm, EvoNorm2dS0, FilterResponseNormAct2d ...). A block, such as ConvNormAct, or a
    linear layer that is named after a norm is none.
    """
    if isinstance(module, _TORCHS):
        return True
    named = "norm" in type(module).__name__.lower() or keeps_statistics(module)
    return named and not isinstance(module, nn.Linear) and all(_is_vector(p) for p in module.parameters())


def norm_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the scales and shifts of all norms in `network`, by name."""
    return {
        name: parameter
        for prefix, module in network.named_modules()
        if is_norm(module)
        for name, parameter in module.named_parameters(prefix, recurse=False)
    }


def keeps_statistics(module: nn.Module) -> bool:
    """Return whether the module itself keeps running statistics that training changes."""
    kept = any(name in ("running_mean", "running_var") for name, _ in module.named_buffers(recurse=False))
    return kept and not isinstance(module, _CONSTANT)


def statistics(network: nn.Module) -> list[Tensor]:
    """Return the buffers of all modules in `network` that keep running statistics."""
    return [b for module in network.modules() if keeps_statistics(module) for b in module.buffers(recurse=False)]


def tracking_batchnorms(network: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorms in `network` that keep running statistics, those fused with an activation included."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _is_vector(parameter: Tensor) -> bool:
    return parameter.numel() == max(parameter.shape, default=1)
