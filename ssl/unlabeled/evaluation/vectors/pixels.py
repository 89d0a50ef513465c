"""Raw pixels as features: the baseline that any network must beat."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.augment.photometric import to_float
from unlabeled.data.sources.open import Source
from unlabeled.engine.passes.features import Embedder

PIXELS = 32  # side to which raw pixels are reduced at most: a baseline needs no more, and memory no less


def pixel_embedder(source: Source, size: int) -> Embedder:
    """Return the pixels in [0, 1]: small images in memory as they are, others as cut for the network (`size`), reduced.

    The reduction to at most 32 x 32 is antialiased. Pixels of sets that do not live in memory are worth keeping.
    """
    if source.images is not None and max(source.images.shape[1:3]) <= PIXELS:
        return Embedder(min(source.images.shape[1:3]), lambda crops: to_float(crops).flatten(1))
    side = min(PIXELS, size)

    def embed(crops: Tensor) -> Tensor:
        x = to_float(crops)
        if side < size:
            x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        return x.flatten(1)

    return Embedder(size, embed, identity=lambda: f"raw pixels of {size}, {side}")


def drop_equal_channels(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Keep one channel of pixels [n, 3 * P] if all three are equal everywhere, as in sets of grey images."""
    a, b, c = train.unflatten(1, (3, -1)).unbind(1)
    if not (torch.equal(a, b) and torch.equal(a, c)):
        return train, test
    return a.contiguous(), test.unflatten(1, (3, -1))[:, 0].contiguous()
