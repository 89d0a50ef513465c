"""Raw pixels as features: the baseline that any network must beat."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.augment.geometry import EvalCrop
from unlabeled.augment.photometric import to_float
from unlabeled.data.batch import Geometry
from unlabeled.data.sources.open import Source
from unlabeled.engine.passes.features import Embedder

PIXELS = 32  # side to which raw pixels are reduced at most: a baseline needs no more, and memory no less
FRAMES = 4  # of a clip, evenly spread, for the same reason


def pixel_embedder(source: Source, crop: Geometry) -> Embedder:
    """Return the pixels in [0, 1]: small images in memory as they are, others as cut for the network (`crop`), reduced.

    The reduction to at most 32 x 32 is antialiased; of a clip at most four frames are taken. Pixels of sets that do not
    live in memory are worth keeping.
    """
    if source.images is not None and max(source.images.shape[1:3]) <= PIXELS:
        return Embedder((EvalCrop(min(source.images.shape[1:3])),), lambda crops: to_float(crops).flatten(1))
    side = min(PIXELS, crop.size)

    def embed(crops: Tensor) -> Tensor:
        if crops.ndim == 5:
            frames = crops.shape[2]
            crops = crops[:, :, torch.linspace(0, frames - 1, min(FRAMES, frames)).long()]
        x = to_float(crops)
        if side < crop.size:
            flat = x.flatten(1, -3)  # frames are channels here: each is reduced by itself
            x = F.interpolate(flat, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        return x.flatten(1)

    return Embedder((crop,), embed, identity=lambda: f"raw pixels of {crop}, {side}")


def drop_equal_channels(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Keep one channel of pixels [n, 3 * P] if all three are equal everywhere, as in sets of grey images."""
    a, b, c = train.unflatten(1, (3, -1)).unbind(1)
    if not (torch.equal(a, b) and torch.equal(a, c)):
        return train, test
    return a.contiguous(), test.unflatten(1, (3, -1))[:, 0].contiguous()
