"""The typed evaluation protocols on feature maps: segmentation and correspondence. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from unlabeled.config.augment import AreaRange, ScaleRange
from unlabeled.config.marks import Free
from unlabeled.config.protocols.vectors import Positive, Protocol

Rate = Annotated[float, Field(gt=0)]


class Dense(Protocol):
    """What the protocols on feature maps share; each is run by the function that `tables.PROTOCOLS` names.

    It is called as runner(name, cfg, restored, run, device) and returns the Report on rank 0, None elsewhere.
    """

    idle: ClassVar[Mapping[str, str]] = {"clip": "it is for networks for images"}
    raw_pixels: Literal[False] = False
    keep_features: Free[Literal[False]] = False
    # the only ones: a training begun before there were the settings goes on
    inflate: Free[Literal[None]] = None
    precision: Free[Literal["fp32"]] = "fp32"


class SegmentationLinear(Dense):
    """Linear classifier of the cells of the last map, trained on single pixels, scored on all of them by mIoU."""

    needs = "masks"
    protocol: Literal["segmentation-linear"]
    size: int | None = Field(
        None, gt=0, description="side of the square that images are resized to, pixels; null: the card's image_size, "
        "where all its images are equal, else as in training"
    )
    batch: Free[int] = Field(
        32, gt=0, description="images per forward pass and process; the result does not depend on it"
    )
    lr: list[Rate] = Field([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0], min_length=1)
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    images_per_update: int = Field(64, gt=0, description="at most the whole training set")
    pixels_per_image: int = Field(32, gt=0, description="drawn anew in every update")
    epochs: int = Field(10, gt=0)
    min_updates: int = Field(1000, gt=0, description="small sets get as many epochs as this takes")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of the training images that chooses the lr")


class SegmentationFcn(Dense):
    """Two 3x3 convolutions and a classifier on the last map, trained together with the backbone, scored by mIoU."""

    needs = "masks"
    protocol: Literal["segmentation-fcn"]
    size: int | None = Field(
        None, gt=0, description="side of the training crops, pixels; null: the card's image_size, where all its images "
        "are equal, else as in training. Test images are taken whole"
    )
    batch: Free[int] = Field(
        8, gt=0, description="test images per forward pass and process, where they are equally large"
    )
    images_per_update: int = Field(16, gt=0, description="over all processes")
    backbone: Literal["fine-tuned", "frozen"] = Field(
        "fine-tuned", description="frozen: the head alone is trained, the backbone stays in evaluation mode"
    )
    dilated_stages: Literal[0, 1, 2] = Field(
        0, description="last stages of a ResNet whose stride becomes dilation: 1 doubles the map (stride 32 to 16)"
    )
    width: Positive = Field(256, description="channels of the two convolutions")
    dilation: Positive = Field(1, description="of the two convolutions; MoCo's and PixPro's protocol has 6")
    scale: ScaleRange = Field((0.5, 2.0), description="range of the random factor on the image's size")
    updates: Positive = Field(2000, description="optimizer updates")
    lr: Rate = 0.01
    drops: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.7, 0.9], description="shares of the training at which the lr is multiplied by 0.1"
    )
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)


class Correspondence(Dense):
    """Share of cells whose most similar cell in another view of the image is the one at the same place; no labels."""

    idle: ClassVar[Mapping[str, str]] = {
        **Dense.idle, "train": "nothing is learnt; 'test' is the split that is looked at",
    }
    protocol: Literal["correspondence"]
    size: int | None = Field(None, gt=0, description="side of the views, pixels; null: as in training")
    area: AreaRange = Field((0.2, 1.0), description="share of the image's area in a view")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip of a view")
    jitter: float = Field(
        1.0, ge=0, le=1, description="strength of the colour jitter of both views; 1 is SimCLR's, 0 none"
    )
    near: float = Field(
        0.7, gt=0, description="bin diagonals within which the second number counts a match (PixPro's threshold)"
    )
