"""Options of dataset reinforcement; the defaults are those of its ImageNet recipe (arXiv 2303.08983)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from unlabeled.config.augment import RandAugment, StorableCrop, StoredResizedCrop
from unlabeled.config.recipe import MethodConfig

_OF_PLAIN_IMAGES = ("randaugment", "erasing")


class ReinforcementConfig(MethodConfig):
    """`method: {name: reinforcement, ...}`: a classifier from random weights, or from `backbone.init`."""

    streams: ClassVar[tuple[str, ...]] = ("train",)
    needs: ClassVar[frozenset[str]] = frozenset()

    name: Literal["reinforcement"] = "reinforcement"
    replay: float = Field(0.99, ge=0, le=1, description="probability that a visit replays a stored entry")
    targets: Literal["teacher", "label"] = Field(
        "teacher", description="label: the image's own label on the same replayed views, the baseline"
    )
    mix: bool = Field(False, description="whether entries may be mixed with a second image, as their store says")
    crop: StorableCrop = Field(
        StoredResizedCrop(flip=0.0),
        description="of the views; its size is that of the stored ones, its law that of plain images",
    )
    randaugment: RandAugment | None = Field(RandAugment(), description="of plain images")
    erasing: float = Field(0.25, ge=0, le=1, description="probability of random erasing with black, of plain images")

    @model_validator(mode="after")
    def _options_have_a_user(self) -> ReinforcementConfig:
        if self.targets == "label" and self.mix:
            raise ValueError("a mixed view has no label for targets: label; take unmixed entries, and mix: false")
        if self.mix and self.replay == 0:
            raise ValueError("'mix' has no effect with replay: 0, which reads no entry")
        if self.targets == "label" and self.replay == 0:
            raise ValueError("'targets' has no effect with replay: 0, which reads no entry")
        idle = set(_OF_PLAIN_IMAGES) & self.model_fields_set
        if self.replay == 1 and idle:
            raise ValueError(f"'{min(idle)}' has no effect with replay: 1, which takes no plain image")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_options_without_user(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        idle = _OF_PLAIN_IMAGES if self.replay == 1 else ()
        return {key: value for key, value in dump(self).items() if key not in idle}
