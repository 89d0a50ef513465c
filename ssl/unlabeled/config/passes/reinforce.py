"""The settings of `unlabeled reinforce`. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from unlabeled.config.augment import StorableCrop, StoredResizedCrop
from unlabeled.config.passes.shared import SplitPassSettings

KIND = "reinforcement"  # of its store, and the name of its rows in cards, recipes and batches


class ReinforceSettings(SplitPassSettings):
    """Which views of every image the teachers see, and what is kept of what they say (arXiv 2303.08983)."""

    entries: int = Field(400, gt=0, le=1 << 20, description="views of every image")
    topk: int = Field(10, gt=0, description="most probable classes that are kept of every view, or all of fewer")
    mix: bool = Field(False, description="mix views with those of other images: mixup and CutMix")
    crop: StorableCrop = Field(
        StoredResizedCrop(), description="of the views; without a size: the first teacher's own"
    )
    randaugment: int | None = Field(9, ge=0, le=30, description="bin of 31 of RandAugment's two operations; null: none")
    erasing: float = Field(0.25, ge=0, le=1, description="probability of random erasing with black")
    seed: int = Field(0, ge=0, description="of all that is drawn")
