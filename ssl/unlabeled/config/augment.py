"""Options of crops, clips and RandAugment, shared by all methods; `augment.geometry.build` makes a crop's geometry."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from unlabeled.config.recipe import Strict


def _area_is_a_share(area: tuple[float, float]) -> tuple[float, float]:
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError(f"area is a range of shares, 0 < smallest <= largest <= 1; got {list(area)}")
    return area


def _scale_is_positive(scale: tuple[float, float]) -> tuple[float, float]:
    return _positive_range("scale", scale)


def _aspect_is_positive(aspect: tuple[float, float]) -> tuple[float, float]:
    return _positive_range("aspect", aspect)


AreaRange = Annotated[tuple[float, float], AfterValidator(_area_is_a_share)]
ScaleRange = Annotated[tuple[float, float], AfterValidator(_scale_is_positive)]
AspectRange = Annotated[tuple[float, float], AfterValidator(_aspect_is_positive)]


class ResizedCrop(Strict):
    """Random resized crop with flip, in torchvision's law: area, log-uniform aspect, ten tries, centre fallback."""

    kind: Literal["resized"] = "resized"
    size: int = Field(224, gt=0, description="side of the view, pixels")
    area: AreaRange = Field((0.08, 1.0), description="share of the image's area")
    aspect: AspectRange = (3 / 4, 4 / 3)
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"


class AffineCrop(Strict):
    """Random affine warp of the whole image, for sets in which a crop would cut the object, such as digits."""

    kind: Literal["affine"]
    size: int = Field(gt=0, description="side of the view, pixels")
    degrees: float = Field(0.0, ge=0, le=180, description="rotation is drawn from +-degrees")
    translate: float = Field(0.0, ge=0, le=1, description="shift is drawn from +- this share of the side")
    scale: ScaleRange = (1.0, 1.0)
    shear: float = Field(0.0, ge=0, lt=90, description="shear along x is drawn from +-degrees")


class PaddedCrop(Strict):
    """The image with a border, cut at a random place to its size: the usual crop of CIFAR networks."""

    kind: Literal["padded"]
    size: int = Field(32, gt=0, description="side of the view, pixels; images must have at least this less twice pad")
    pad: int = Field(4, ge=0, description="border on every side, pixels")
    border: Literal["black", "reflect"] = Field("black", description="reflect: the image's own pixels, mirrored")
    resize: int | None = Field(None, gt=0, description="side of the square to which images are resized first, pixels")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")


class SquareCrop(Strict):
    """A square of a fixed share of the shorter side at a random place: 0.875 is 'short side to 256, crop 224'."""

    kind: Literal["square"]
    size: int = Field(224, gt=0, description="side of the view, pixels")
    proportion: float = Field(0.875, gt=0, le=1, description="side of the square as a share of the shorter side")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


class PaddleCrop(Strict):
    """Random resized crop with flip in PaddlePaddle's law: one draw of uniform aspect and of an area that fits it."""

    kind: Literal["paddle"]
    size: int = Field(224, gt=0, description="side of the view, pixels")
    area: AreaRange = Field((0.08, 1.0), description="share of the image's area, as far as the aspect lets it be")
    aspect: AspectRange = (3 / 4, 4 / 3)
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


class Clip(Strict):
    """How many frames a clip has, and how far apart they are in the video."""

    frames: int = Field(16, gt=0)
    stride: int = Field(2, gt=0, description="frames of the video from one frame of the clip to the next")
    per_second: float | None = Field(
        None, gt=0, description="frames of the clip per second, in place of stride where the video's rate is known"
    )


ClipOrImage = Annotated[Clip | None, Field(
    description="of videos: frames of a clip, which starts anywhere in its video; null: images. Protocols put in the "
    "clips of the network")]


class RandAugment(Strict):
    """RandAugment (arXiv 1909.13719) as torchvision has it."""

    operations: int = Field(2, gt=0, description="operations per image")
    magnitude: int = Field(9, ge=0, le=30, description="bin of 31")


def kind(value: Any) -> Any:
    """Return the kind of a crop; `resized` where none is given, so that `method.crop.size=96` suffices."""
    return value.get("kind", "resized") if isinstance(value, dict) else getattr(value, "kind", None)


def _positive_range(name: str, values: tuple[float, float]) -> tuple[float, float]:
    if not 0 < values[0] <= values[1]:
        raise ValueError(f"{name} is a range, 0 < smallest <= largest; got {list(values)}")
    return values


Crop = Annotated[
    Annotated[ResizedCrop, Tag("resized")]
    | Annotated[PaddedCrop, Tag("padded")]
    | Annotated[SquareCrop, Tag("square")]
    | Annotated[PaddleCrop, Tag("paddle")]
    | Annotated[AffineCrop, Tag("affine")],
    Discriminator(kind),
]


class StoredResizedCrop(ResizedCrop):
    """A random resized crop whose place is stored; it is resized as the published entries were."""

    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


# crops of whole pixels in the image: those whose places can be stored
StorableCrop = Annotated[
    Annotated[StoredResizedCrop, Tag("resized")] | Annotated[PaddedCrop, Tag("padded")],
    Discriminator(kind),
]
