"""Options of SimMatchV2; the defaults are those of the published ImageNet runs (arXiv 2308.06692)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from unlabeled.config.augment import Crop, ResizedCrop
from unlabeled.config.base.curve import Momentum, Temperature
from unlabeled.config.recipe import MethodConfig, Strict


class ColorAugment(Strict):
    """Photometric changes of one strong view, in this order."""

    kind: Literal["color"] = "color"
    brightness: float = Field(0.4, ge=0)
    contrast: float = Field(0.4, ge=0)
    saturation: float = Field(0.2, ge=0)
    hue: float = Field(0.1, ge=0, le=0.5, description="share of the colour circle")
    jitter_p: float = Field(0.8, ge=0, le=1, description="probability of the four above, in random order")
    gray_p: float = Field(0.2, ge=0, le=1)
    blur_p: float = Field(0.5, ge=0, le=1)
    blur_sigma: tuple[float, float] = Field((0.1, 2.0), description="pixels")
    solarize_p: float = Field(0.1, ge=0, le=1)


class RandAugment(Strict):
    """Random operations of random strength, then a gray square."""

    kind: Literal["randaugment"]
    operations: int = Field(3, ge=0, description="drawn with replacement from fourteen")
    square: float = Field(0.5, ge=0, le=1, description="the square's side is uniform up to this share of the image's")


class Ema(Strict):
    """The teacher."""

    kind: Literal["plain", "eman"] = Field(
        "plain",
        description="plain: parameters are averaged, BatchNorm uses each batch's statistics, over shuffled images; "
        "eman: BatchNorm's statistics are averaged too, and used",
    )
    momentum: Momentum = Field(
        0.999, description="a number up to 0.996 rises to 1 by a half cosine; or any curve of it: {start, end, ...}"
    )


def _multicrop() -> list[Crop]:
    sizes = (224, 192, 160, 120, 96)
    areas = ((0.14, 1.0), (0.117, 0.86), (0.095, 0.715), (0.073, 0.571), (0.05, 0.429))
    return [ResizedCrop(size=s, area=a, interpolation="bilinear") for s, a in zip(sizes, areas, strict=True)]


class SimMatchV2Config(MethodConfig):
    """`method: {name: simmatchv2, ...}`; images are normalised by the mean and std of the unlabelled stream's card."""

    streams: ClassVar[tuple[str, ...]] = ("labeled", "unlabeled")
    needs: ClassVar[frozenset[str]] = frozenset()

    name: Literal["simmatchv2"] = "simmatchv2"
    embed_dim: int = Field(128, gt=0)
    feature_norm: bool = Field(True, description="LayerNorm on the backbone's vector")
    temperature: Temperature = Field(
        0.1, description="of similarities, in the graph and over the bank: a number, or a curve over the run"
    )
    topn: int = Field(128, gt=0, description="labelled neighbours in the graph of an image")
    alpha: float = Field(0.1, ge=0, lt=1, description="how far labels travel in the graph; 0: not at all")
    threshold: float = Field(0.7, ge=0, description="least confidence of the teacher for node-node; above 1: never")
    bank: int = Field(81920, gt=0, description="unlabelled images in the bank: a multiple of an update's")
    bank_init: Literal["zero", "uniform"] = Field("zero", description="labels of rows never written")
    align: bool = Field(True, description="divide the teacher's predictions by their running mean")
    align_momentum: float = Field(0.9, ge=0, le=1, description="of the running mean, per update")
    lambda_nn: float = Field(10.0, ge=0, description="weight of node-node consistency")
    lambda_ee: float = Field(10.0, ge=0, description="weight of edge-edge consistency")
    lambda_en: float = Field(10.0, ge=0, description="weight of edge-node consistency")
    ema: Ema = Ema()
    crop: Crop = Field(
        ResizedCrop(area=(0.2, 1.0), interpolation="bilinear"), description="of labelled images and the teacher's views"
    )
    strong: list[Crop] = Field(default_factory=_multicrop, min_length=1, description="one strong view each")
    augment: Annotated[ColorAugment | RandAugment, Field(discriminator="kind")] = Field(
        ColorAugment(), description="of the strong views, after their crops"
    )

    @model_validator(mode="after")
    def _first_views_share_a_batch(self) -> SimMatchV2Config:
        if self.strong[0].size != self.crop.size:
            raise ValueError(
                f"the first view of 'strong' has {self.strong[0].size} pixels, but 'crop' {self.crop.size}: they pass "
                "the network in one batch"
            )
        return self
