"""Options of ReLabel; the defaults are those of its ResNet-50 recipe (arXiv 2101.05022 and its published code)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from unlabeled.config.augment import ResizedCrop
from unlabeled.config.recipe import MethodConfig, Strict

Strength = Annotated[float, Field(ge=0, le=1)]


class CutMix(Strict):
    """CutMix (arXiv 1905.04899) as ReLabel's code has it: one share and one box per batch."""

    beta: float = Field(1.0, gt=0, description="both parameters of the Beta law of the share that stays")
    p: float = Field(1.0, gt=0, le=1, description="probability that a batch is mixed")
    off_last_epochs: int = Field(5, ge=0, description="epochs at the end that are not mixed")


class RelabelConfig(MethodConfig):
    """`method: {name: relabel, ...}`: a classifier from random weights, or from `backbone.init`."""

    streams: ClassVar[tuple[str, ...]] = ("train",)
    needs: ClassVar[frozenset[str]] = frozenset()

    name: Literal["relabel"] = "relabel"
    targets: Literal["labelmap", "label"] = Field(
        "labelmap", description="label: the image's own label, the baseline on the same recipe"
    )
    pooling: Literal["box", "whole"] = Field(
        "box", description="where the map is pooled: inside the crop's box, or over the whole map as an ablation"
    )
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing, of targets: label")
    crop: ResizedCrop = ResizedCrop(interpolation="bilinear")
    color_jitter: tuple[Strength, Strength, Strength, Annotated[float, Field(ge=0, le=0.5)]] = Field(
        (0.4, 0.4, 0.4, 0.0), description="brightness, contrast, saturation, hue"
    )
    lighting: float = Field(0.1, ge=0, description="deviation of PCA lighting's three factors; 0: none")
    cutmix: CutMix | None = Field(None, description="in a block of its own: {beta: 1.0, p: 1.0, off_last_epochs: 5}")

    @model_validator(mode="after")
    def _options_have_a_user(self) -> RelabelConfig:
        if self.targets == "labelmap" and self.smoothing:
            raise ValueError("'smoothing' has no effect with targets: labelmap, whose absent classes smooth already")
        if self.targets == "label" and self.pooling == "whole":
            raise ValueError("'pooling' has no effect with targets: label, which reads no map")
        return self
