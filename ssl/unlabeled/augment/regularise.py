"""torchvision's random erasing, mixup and CutMix on batches, drawn as the project draws.

Erasing is drawn per image, from its place in the global batch; mixup and CutMix once per process, as in their papers,
and mix its images with one another. RandAugment is in `operations`.
"""

from __future__ import annotations

from collections.abc import Callable

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
