"""Do two images show the same picture? Local features, their matches, and an affine map that most of them agree with.

The constants are those of the method text beside arXiv 2103.05959, which publishes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LONGEST = 512  # pixels of the longest side; smaller images are enlarged, for what is large in them is found too
_KEYPOINTS = 1000  # of an image at most
_CONTRAST = 0.02 / 3  # of a keypoint in [0, 1]: half of OpenCV's, since enlarged images have little
_RATIO = 0.75  # of the distances to the nearest and to the second nearest descriptor
_REACH = 3.0  # pixels by which a match may miss the affine map
_FEWEST = 4  # matches that can disagree with an affine map
_STEP = 16  # pixels: sides are multiples of it, so that images of about one shape go through together
_TOGETHER = 4  # images at once


class Keypoints(NamedTuple):
    """Places (x, y) in pixels, float32 [k, 2], and descriptors, float32 [k, 128], of the features of an image."""

    places: Tensor
    descriptors: Tensor


def gray(image: np.ndarray) -> Tensor:
    """Return an image, uint8 [H, W, 3], in gray with a longest side of 512 pixels: uint8 [1, h, w].

    The shorter side is rounded to 16 pixels.
    """
    from PIL import Image

    height, width = image.shape[:2]
    scale = LONGEST / max(height, width)
    size = [max(_STEP, round(side * scale / _STEP) * _STEP) for side in (width, height)]
    resized = Image.fromarray(image).convert("L").resize((size[0], size[1]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized))[None]


class LocalFeatures:
    """SIFT as kornia computes it, in scale space, on the device."""

    def __init__(self, device: torch.device) -> None:
        from kornia.feature import SIFTFeatureScaleSpace, match_smnn  # 2 s that only this pays
        from kornia.geometry.ransac import RANSAC

        self.device = device
        self.sift = SIFTFeatureScaleSpace(_KEYPOINTS, rootsift=False, device=device, descriptor_backend="pyramid")
        self.match = match_smnn
        self.ransac = RANSAC("affine", inl_th=_REACH, score_type="msac")

    def keypoints(self, images: Sequence[Tensor]) -> list[Keypoints]:
        """Return the features of gray images, uint8 [1, h, w]; those of one shape are computed together."""
        found: dict[int, Keypoints] = {}
        shapes: dict[torch.Size, list[int]] = {}
        for number, image in enumerate(images):
            shapes.setdefault(image.shape, []).append(number)
        for numbers in shapes.values():
            for first in range(0, len(numbers), _TOGETHER):
                part = numbers[first : first + _TOGETHER]
                x = torch.stack([images[number] for number in part]).to(self.device).float() / 255
                frames, contrast, descriptors = self.sift(x)
                for number, frame, strength, descriptor in zip(part, frames, contrast, descriptors, strict=True):
                    clear = strength >= _CONTRAST
                    found[number] = Keypoints(frame[clear][:, :, 2], descriptor[clear])
        return [found[number] for number in range(len(images))]

    def agreement(self, one: Keypoints, other: Keypoints, seed: int) -> tuple[int, int]:
        """Return how many features match, and how many of the matches agree with one affine map.

        Matches are nearest to each other, by far (the ratio test both ways): else many features match one, and a map
        that sends all to this place agrees with them all.
        """
        if min(len(one.places), len(other.places)) < 2:
            return 0, 0
        _, matches = self.match(one.descriptors, other.descriptors, _RATIO)
        if len(matches) < _FEWEST:
            return len(matches), 0
        self.ransac.seed = seed
        _, agreeing = self.ransac(one.places[matches[:, 0]], other.places[matches[:, 1]])
        return len(matches), int(agreeing.sum())

