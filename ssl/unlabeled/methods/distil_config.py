"""Options of distillation; the defaults are SimCLRv2's big-to-small stage (arXiv 2006.10029 section 2)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from unlabeled.config.augment import Crop, ResizedCrop
from unlabeled.config.base.curve import Temperature
from unlabeled.config.recipe import MethodConfig, Subset


class DistilConfig(MethodConfig):
    """`method: {name: distil, ...}`; the student is the recipe's backbone."""

    streams: ClassVar[tuple[str, ...]] = ("train",)
    needs: ClassVar[frozenset[str]] = frozenset()

    name: Literal["distil"] = "distil"
    teacher: str = Field(description="a run that trained a classifier, RUN or RUN:EXPORT, such as runs/finetuned-s0")
    temperature: Temperature = Field(
        1.0, description="of both softmaxes, a number or a curve; the paper takes 0.1 to distil into itself"
    )
    scale_by_t2: bool = Field(True, description="times the squared temperature, as the code and not the paper")
    alpha: float = Field(1.0, ge=0, le=1, description="weight of the teacher; the rest goes to the labels")
    labels: Subset | None = Field(None, description="the images whose labels are used, if alpha < 1; null: all")
    crop: Crop = ResizedCrop()

    @model_validator(mode="after")
    def _labels_have_a_use(self) -> DistilConfig:
        if self.labels is not None and self.alpha == 1:
            raise ValueError("'labels' has no effect with alpha 1; lower alpha, or leave labels out")
        return self
