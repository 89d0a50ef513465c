"""Options of feature distillation, which is no published method: the defaults are ours (docs/feature-distil.md)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from unlabeled.config.augment import Crop, ResizedCrop
from unlabeled.config.recipe import Backbone, MethodConfig, Smallest, Strict
from unlabeled.config.sources import public


class Cosine(Strict):
    """One minus the cosine of prediction and target."""

    kind: Literal["cosine"] = "cosine"


class SmoothL1(Strict):
    """Mean over dimensions of a difference that is squared where it is small (torch's smooth L1)."""

    kind: Literal["smooth_l1"]
    beta: float = Field(2.0, gt=0, description="difference up to which it is quadratic, beyond it is linear")


class FeatureDistilConfig(MethodConfig):
    """`method: {name: feature-distil, ...}`; the student is the recipe's backbone."""

    streams: ClassVar[tuple[str, ...]] = ("train",)
    needs: ClassVar[frozenset[str]] = frozenset()

    name: Literal["feature-distil"] = "feature-distil"
    teacher: str = Field(
        description="a network that gives features: RUN[:EXPORT[.BLOCK]], timm:NAME[@FILE] or torchvision:NAME[@FILE]"
    )
    teacher_options: dict[str, Any] = Field(
        {}, description="of the constructor of a timm or torchvision teacher, such as {img_size: 224}"
    )
    pooled: float = Field(1.0, ge=0, description="weight of the loss on one vector per image; 0: none")
    cells: float = Field(0.0, ge=0, description="weight of the loss on the cells of the last maps, or tokens; 0: none")
    loss: Annotated[Cosine | SmoothL1, Field(discriminator="kind")] = Cosine()
    standardise: Literal["dimensions", "vectors"] = Field(
        "dimensions",
        description="the teacher's features: every dimension by its mean and deviation over all images so far, or "
        "every vector by its own mean and deviation",
    )
    crop: Crop = ResizedCrop()

    @model_validator(mode="after")
    def _something_is_compared(self) -> FeatureDistilConfig:
        if self.pooled == self.cells == 0:
            raise ValueError("'pooled' and 'cells' are both 0, so nothing would be learned; give one of them a weight")
        return self

    @model_validator(mode="after")
    def _options_fit_the_teacher(self) -> FeatureDistilConfig:
        named = public(self.teacher)
        if named is None and self.teacher_options:
            raise ValueError(f"'teacher_options' has no effect with '{self.teacher}', which is a run and built already")
        if named is not None:
            try:
                Backbone(name=named.backbone, options=self.teacher_options)
            except ValidationError as error:
                said = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(said.replace("'options", "'teacher_options")) from error
        return self

    def smallest_batch(self, stream: str) -> Smallest | None:
        """Return two where deviations over images are taken of one vector per image."""
        why = "method.standardise dimensions divides by the deviation over images, and one image has none"
        return Smallest(2, why) if self.pooled and self.standardise == "dimensions" else None
