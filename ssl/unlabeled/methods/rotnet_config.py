"""Options of RotNet (arXiv 1803.07728)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from unlabeled.config.augment import Crop, ResizedCrop
from unlabeled.config.recipe import MethodConfig


class RotNetConfig(MethodConfig):
    """`method: {name: rotnet, ...}`; images are normalised by the card's mean and std."""

    streams: ClassVar[tuple[str, ...]] = ("train",)
    needs: ClassVar[frozenset[str]] = frozenset()

    name: Literal["rotnet"] = "rotnet"
    all_rotations: bool = Field(
        True, description="every image in all four rotations, so 4 rows per image; false: one random rotation each"
    )
    block: str | None = Field(
        None, description="inner block that is exported first, such as conv2: the last ones know little but rotations"
    )
    crop: Crop = ResizedCrop(interpolation="bilinear")
