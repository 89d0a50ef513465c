"""torchvision's random erasing, mixup and CutMix on batches, drawn as the project draws.

Erasing is drawn per image, from its place in the global batch; mixup and CutMix once per process, as in their papers,
and mix its images with one another. RandAugment is in `operations`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from unlabeled.ops.distributed import Share

Image = Callable[[Tensor], Tensor]


def random_erasing(p: float) -> Image:
    """Return random erasing for one standardised image [3, H, W]: a box of noise with probability `p`."""
    return v2.RandomErasing(p, value="random")


def each(images: Tensor, transform: Image, generator: torch.Generator, share: Share) -> Tensor:
    """Transform every image of this rank's [n, 3, H, W]; what is drawn for it depends on its place in the global batch.

    generator: one that is equal on all ranks.
    """
    seeds = torch.randint(2**62, (share.total,), generator=generator)[share.mine]
    made = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images, seeds.tolist(), strict=True):
            torch.default_generator.manual_seed(seed)  # torchvision draws from it, on GPUs too
            made.append(transform(image))
    return torch.stack(made)


def mix(images: Tensor, target: Tensor, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mix float images [n, 3, H, W] and targets [n, C] with their neighbours by mixup or by CutMix, at even odds.

    mixup, cutmix: alpha of the Beta law of the share; 0 leaves that one out. Draws from torch's global generator.
    """
    kinds = [
        kind(alpha=alpha, num_classes=target.shape[1])
        for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        if alpha > 0
    ]
    if not kinds:
        return images, target
    chosen = kinds[int(torch.randint(len(kinds), ()))]
    mixed: tuple[Tensor, Tensor] = chosen(images, target)
    return mixed


class Cut(NamedTuple):
    """What CutMix pastes from one image into another: rows [top, bottom) and columns [left, right)."""

    top: int
    left: int
    bottom: int
    right: int

    def left_over(self, height: int, width: int) -> float:
        """Return the share of an image that stays: 1 minus the box's, after it was clipped."""
        return 1 - (self.bottom - self.top) * (self.right - self.left) / (height * width)


def cut_around(centre: tuple[int, int], share: float, height: int, width: int) -> Cut:
    """Return the box around `centre` (row, column) that leaves `share` of an image, clipped to the image.

    Sides are whole pixels, and of these the half, both rounded down (arXiv 1905.04899 eq. 2 and its code).
    """
    half = [int(side * (1 - share) ** 0.5) // 2 for side in (height, width)]
    low = [max(0, place - extent) for place, extent in zip(centre, half, strict=True)]
    high = [min(side, place + extent) for place, extent, side in zip(centre, half, (height, width), strict=True)]
    return Cut(*low, *high)


def draw_cut(height: int, width: int, beta: float, generator: torch.Generator) -> Cut:
    """Draw a box: the share that stays by a Beta law with both parameters `beta`, the centre evenly.

    generator: one that is equal on all ranks, which then cut the same box.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    random = np.random.default_rng(seed)
    share = float(random.beta(beta, beta))
    return cut_around((int(random.integers(height)), int(random.integers(width))), share, height, width)


def paste(images: Tensor, target: Tensor, partners: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
    """Paste a box of their partners into images [n, C, H, W], and mix targets [n, classes] by its area.

    partners: int64 [n], the row of each image's partner.
    """
    top, left, bottom, right = cut
    mixed, stays = images.clone(), cut.left_over(*images.shape[2:])
    mixed[:, :, top:bottom, left:right] = images[partners, :, top:bottom, left:right]
    return mixed, stays * target + (1 - stays) * target[partners]
