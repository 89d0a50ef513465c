"""Options of CVRL; the defaults are the published code's (arXiv 2008.03800)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from unlabeled.config.augment import Clip, Crop, ResizedCrop
from unlabeled.config.base.curve import Temperature
from unlabeled.config.recipe import MethodConfig, Smallest, Strict


class Interval(Strict):
    """The law of the gap t between the starts of a video's two clips, which is at most T."""

    law: Literal["decreasing", "uniform", "increasing"] = Field(
        "decreasing", description="density: 1 - (t/T)^power as published, 1, or (t/T)^power"
    )
    power: float = Field(1.0, gt=0, description="1: the density falls, or rises, in a straight line")


class Head(Strict):
    """The projection head."""

    layers: int = Field(3, ge=0, description="hidden layers, each with BatchNorm and ReLU")
    hidden: int = Field(2048, gt=0, description="their width")
    out_dim: int = Field(128, gt=0)


class Augment(Strict):
    """Photometric changes, in this order; where two numbers stand, the first is for clip 1, the second for clip 2."""

    brightness: float = Field(0.8, ge=0)
    contrast: float = Field(0.8, ge=0, description="about the mean of the clip, per channel")
    saturation: float = Field(0.8, ge=0, description="of HSV")
    hue: float = Field(0.2, ge=0, le=0.5, description="share of the colour circle")
    jitter_p: float = Field(0.8, ge=0, le=1, description="probability of the four above, in random order")
    gray_p: float = Field(0.2, ge=0, le=1)
    blur_p: tuple[float, float] = (1.0, 0.1)
    blur_sigma: tuple[float, float] = Field((0.1, 2.0), description="range, pixels")
    solarize_p: tuple[float, float] = (0.0, 0.2)
    per_frame: bool = Field(False, description="true: drawn anew for every frame, an ablation of the paper")


class CVRLConfig(MethodConfig):
    """`method: {name: cvrl, ...}`; clips are seen in [0, 1], or as the images of `backbone.init` were."""

    streams: ClassVar[tuple[str, ...]] = ("train",)
    needs: ClassVar[frozenset[str]] = frozenset({"video"})

    name: Literal["cvrl"] = "cvrl"
    temperature: Temperature = Field(0.1, description="a number, or a curve over the run")
    clip: Clip = Clip()
    interval: Interval = Interval()
    head: Head = Head()
    crop: Crop = ResizedCrop(area=(0.3, 1.0), aspect=(0.5, 2.0), interpolation="bilinear")
    augment: Augment = Augment()

    def smallest_batch(self, stream: str) -> Smallest:
        """Return two: one for the other to be told from."""
        return Smallest(2, "a video is told from the others of its batch, and one has none")
