"""Options of fine-tuning and of supervised training."""

from __future__ import annotations

from typing import ClassVar, Literal

from unlabeled.config.augment import Crop, ResizedCrop
from unlabeled.config.recipe import MethodConfig


class FinetuneConfig(MethodConfig):
    """`method: {name: finetune, ...}`; it starts from `backbone.init`, or from random weights."""

    streams: ClassVar[tuple[str, ...]] = ("train",)
    needs: ClassVar[frozenset[str]] = frozenset()

    name: Literal["finetune"] = "finetune"
    crop: Crop = ResizedCrop()
