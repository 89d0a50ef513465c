"""Options of the toy methods."""

from __future__ import annotations

from unlabeled.config.augment import Crop, PaddedCrop
from unlabeled.config.recipe import MethodConfig


class ToyConfig(MethodConfig):
    """`method: {name: "methods.battery.planted:Toy"}`."""

    name: str
    crop: Crop = PaddedCrop(kind="padded", size=8, pad=1)
