"""PCA lighting: shifts along the principal axes of ImageNet's colours (Krizhevsky et al., NIPS 2012, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from unlabeled.ops.machine.memory import to_device

# of the colours of ImageNet's training images in [0, 1], as training codes pass them on (such as ReLabel's); the
# columns of _AXES are the axes
_VARIANCES = (0.2175, 0.0188, 0.0045)
_AXES = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def draw_lighting(n: int, deviation: float, generator: torch.Generator) -> Tensor:
    """Draw the shift of every channel of n images in [0, 1], float32 [n, 3]: factors of the axes are normal."""
    factors = torch.randn(n, 3, generator=generator) * deviation
    return factors * torch.tensor(_VARIANCES) @ torch.tensor(_AXES).T


def light(x: Tensor, shifts: Tensor) -> Tensor:
    """Shift the channels of float images [n, 3, H, W] by [n, 3]; nothing is clipped."""
    return x + to_device(shifts, x.device).to(x.dtype)[:, :, None, None]
