"""The typed protocol of detection transfer. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from unlabeled.config.marks import Free, Scoring
from unlabeled.config.protocols.dense import Dense, Rate
from unlabeled.config.protocols.vectors import Positive


class Detection(Dense):
    """Faster R-CNN or Mask R-CNN around the backbone, all of it trained, scored by average precision."""

    needs = "boxes"
    protocol: Literal["detection"]
    neck: Literal["fpn", "c4"] = Field(
        description="fpn: feature pyramid over four stages; c4: layer3's map, and layer4 with one more norm for regions"
    )
    masks: bool = Field(description="true: Mask R-CNN, which learns and is scored by masks too")
    size: Scoring[int] = Field(800, gt=0, description="shorter side of test images, pixels")
    train_sizes: list[Positive] = Field(min_length=1, description="shorter sides of training images, one is drawn each")
    longest: Positive = Field(1333, description="largest longer side, pixels; the shorter one then gives way")
    test_images: Scoring[Positive | None] = Field(None, description="score only the first so many; null: all of them")
    batch: Free[int] = Field(1, gt=0, description="test images per forward pass and process")
    width: Positive = Field(256, description="channels of the pyramid and its heads; their linear layer has 4 times it")
    anchors: list[Positive] = Field(
        [32, 64, 128, 256, 512], min_length=1, description="sides, pixels; fpn: one for each of its five levels"
    )
    proposals_train: tuple[Positive, Positive] = Field(description="before (fpn: per level) and after suppression")
    proposals_test: tuple[Positive, Positive] = Field(description="the same for test images")
    regions: Positive = Field(512, description="sampled per training image for the region heads")
    images_per_update: Positive = Field(16, description="over all processes")
    updates: Positive = Field(description="optimizer updates")
    lr: Rate = 0.02
    steps: list[Positive] = Field([], description="updates at which the lr is multiplied by 0.1")
    warmup: int = Field(1000, ge=0, description="updates in which the lr rises linearly from a thousandth")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0, description="of all weights but those of norms")
    precise_bn: int = Field(200, ge=0, description="batches that give norms their last statistics; 0: running ones")
    recall_levels: Scoring[Literal[11, 101]] = Field(
        101, description="of the precision-recall curve: VOC 2007's, or COCO's"
    )
    checkpoint_every: Free[Positive | None] = Field(
        None, description="updates between checkpoints; null: by time, so often that saving takes 2 % of it"
    )

    @model_validator(mode="after")
    def _lengths_fit(self) -> Detection:
        if self.steps != sorted(self.steps) or (self.steps and self.steps[-1] >= self.updates):
            raise ValueError(f"steps rise and lie before updates={self.updates}; got {self.steps}. A shorter training "
                             "sets both, such as updates=2000 steps=[1500,1800]")
        if self.neck == "fpn" and len(self.anchors) != 5:
            raise ValueError(f"fpn has five levels, so anchors needs five sides; got {self.anchors}")
        if self.neck == "c4" and "width" in self.model_fields_set:
            raise ValueError("'width' has no effect with c4, whose heads are the network's own")
        return self
