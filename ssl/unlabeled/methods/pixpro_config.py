"""Options of PixPro and PixContrast; the defaults are the published code's (arXiv 2011.10043)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from unlabeled.config.augment import ResizedCrop
from unlabeled.config.base.curve import Momentum, Temperature
from unlabeled.config.recipe import MethodConfig, Smallest, Strict


class Propagation(Strict):
    """PixPro: the cells of one view, averaged by similarity, must agree with those of the other."""

    kind: Literal["propagation"] = "propagation"
    transform_layers: int = Field(1, ge=0, le=3, description="1x1 convolutions that turn cells into what is averaged")
    sharpness: float = Field(2.0, gt=0, description="power of the similarities")
    clamp: float = Field(0.0, ge=0, lt=1, description="smallest similarity, before the power")


class Contrast(Strict):
    """PixContrast: cells are told apart from the distant cells of the same image's other view."""

    kind: Literal["contrast"]
    temperature: Temperature = Field(0.3, description="a number, or a curve over the run")


class Byol(Strict):
    """The published instance branch: one view's vector, through a predictor, must agree with that of the other."""

    kind: Literal["byol"] = "byol"
    weight: float = Field(1.0, gt=0)
    predictor_hidden: int = Field(4096, gt=0)


class InfoNce(Strict):
    """The instance branch as the paper words it: SimCLR with a momentum encoder."""

    kind: Literal["infonce"]
    weight: float = Field(1.0, gt=0)
    temperature: Temperature = Field(0.2, description="a number, or a curve over the run")


class Fpn(Strict):
    """A feature pyramid that is trained along, each level compared by itself (of the paper, without published code)."""

    levels: tuple[Literal[2, 3, 4, 5, 6], ...] = Field((3, 4, 5, 6), min_length=1, description="6: 5 at half size")
    width: int = Field(256, gt=0)


class Augment(Strict):
    """Photometric changes, in this order; where two numbers stand, the first is for view 1, the second for view 2."""

    brightness: float = Field(0.4, ge=0)
    contrast: float = Field(0.4, ge=0)
    saturation: float = Field(0.2, ge=0)
    hue: float = Field(0.1, ge=0, le=0.5, description="share of the colour circle")
    jitter_p: float = Field(0.8, ge=0, le=1, description="probability of the four above, in random order")
    gray_p: float = Field(0.2, ge=0, le=1)
    blur_p: tuple[float, float] = (1.0, 0.1)
    blur_sigma: tuple[float, float] = Field((0.1, 2.0), description="range, pixels")
    solarize_p: tuple[float, float] = (0.0, 0.2)


class PixProConfig(MethodConfig):
    """`method: {name: pixpro, ...}`; images are normalised by the card's mean and std."""

    streams: ClassVar[tuple[str, ...]] = ("train",)
    needs: ClassVar[frozenset[str]] = frozenset({"map"})

    name: Literal["pixpro"] = "pixpro"
    hidden: int = Field(4096, gt=0, description="width of the projectors' hidden layer")
    dim: int = Field(256, gt=0, description="numbers per projected cell")
    head_output_bias: bool = Field(True, description="bias in the heads' last layer; small sets may collapse with it")
    pixel: Annotated[Propagation | Contrast, Field(discriminator="kind")] = Propagation()
    threshold: float = Field(0.7, gt=0, description="cells nearer than this agree; unit: diagonal of the larger cell")
    instance: Annotated[Byol | InfoNce, Field(discriminator="kind")] | None = None
    fpn: Fpn | None = None
    key_momentum: Momentum = Field(0.99, description="at the start; it rises to 1 by a half cosine; or any curve of it")
    crop: ResizedCrop = ResizedCrop(interpolation="bilinear")
    augment: Augment = Augment()

    def smallest_batch(self, stream: str) -> Smallest | None:
        """Return two for the contrastive instance branch; cells are compared within an image."""
        why = "method.instance infonce tells an image from the others of its batch, and one has none"
        return Smallest(2, why) if isinstance(self.instance, InfoNce) else None
