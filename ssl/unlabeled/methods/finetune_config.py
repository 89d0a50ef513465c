"""Options of fine-tuning and of supervised training."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from unlabeled.config.augment import ClipOrImage, Crop, RandAugment, ResizedCrop
from unlabeled.config.base.curve import Momentum
from unlabeled.config.recipe import MethodConfig


class FinetuneConfig(MethodConfig):
    """`method: {name: finetune, ...}`; it starts from `backbone.init`, or from random weights."""

    streams: ClassVar[tuple[str, ...]] = ("train",)
    needs: ClassVar[frozenset[str]] = frozenset()

    name: Literal["finetune"] = "finetune"
    crop: Crop = ResizedCrop()
    clip: ClipOrImage = None
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the learning rate per layer below the classifier (arXiv 2106.08254)"
    )
    stage_lr: tuple[float, ...] | None = Field(
        None, min_length=1, description="instead: factors on the learning rate of the stem and of every stage of the "
        "network; of MobileNetV3's of as many equal runs of blocks (arXiv 2103.05959 section 4.3)"
    )
    randaugment: RandAugment | None = None
    erasing: float = Field(0.0, ge=0, le=1, description="probability of random erasing (arXiv 1708.04896)")
    mixup: float = Field(0.0, ge=0, description="alpha of mixup (arXiv 1710.09412), within a process; 0: none")
    cutmix: float = Field(0.0, ge=0, description="alpha of CutMix (arXiv 1905.04899); with mixup: either, evenly")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the features, before the classifier")
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")
    ema: Momentum | None = Field(
        None, description="decay per update of a moving average of all weights and BatchNorm statistics, or a curve of "
        "it; the average is handed out in their place; null: none"
    )

    @model_validator(mode="after")
    def _rates_go_by_layer_or_by_stage(self) -> FinetuneConfig:
        if self.stage_lr is not None and self.layer_decay != 1:
            raise ValueError("give either layer_decay or stage_lr")
        if self.stage_lr is not None and min(self.stage_lr) <= 0:
            raise ValueError(f"stage_lr holds factors above 0; got {list(self.stage_lr)}")
        return self
