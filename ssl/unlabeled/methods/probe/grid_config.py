"""Options of the linear probe that trains a grid of classifiers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from unlabeled.config.augment import ClipOrImage, Crop, ResizedCrop
from unlabeled.config.recipe import MethodConfig

Rate = Annotated[float, Field(gt=0)]


def _distinct(rates: list[float]) -> list[float]:
    if sorted(set(rates)) != rates:
        raise ValueError(f"lr lists rising learning rates, each once; got {rates}")
    return rates


class LinearGridConfig(MethodConfig):
    """`method: {name: linear-grid, ...}`; all classifiers learn at once from one pass of the frozen network."""

    streams: ClassVar[tuple[str, ...]] = ("train",)
    needs: ClassVar[frozenset[str]] = frozenset()
    chooses: ClassVar[bool] = True

    name: Literal["linear-grid"] = "linear-grid"
    lr: Annotated[list[Rate], Field(min_length=1), AfterValidator(_distinct)] = Field(
        [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1],
        description="factors on the recipe's learning rate, one classifier for each, on every form of the features",
    )
    crop: Crop = ResizedCrop()
    clip: ClipOrImage = None
