"""Options of SSLD; the defaults are the paper's (arXiv 2103.05959)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from unlabeled.config.augment import Crop, PaddleCrop
from unlabeled.config.recipe import MethodConfig, Smallest

# images of a block below which statistics of its own are too noisy for a teacher
SMALLEST_BLOCK = 16


class SSLDConfig(MethodConfig):
    """`method: {name: ssld, ...}`; the student is the recipe's backbone."""

    streams: ClassVar[tuple[str, ...]] = ("train",)
    needs: ClassVar[frozenset[str]] = frozenset()

    name: Literal["ssld"] = "ssld"
    teacher: str = Field(description="a trained classifier, such as RUN or RUN:EXPORT")
    teacher_bn: Literal["batch", "running"] = Field(
        "batch",
        description="statistics of the teacher's BatchNorm: those of every block of the batch (train.blocks), as "
        "published, or its own running ones",
    )
    loss: Literal["js", "soft_ce"] = Field(
        "js", description="half the symmetric KL divergence, or the cross-entropy under the teacher's classes"
    )
    policy: Literal["autoaugment"] | None = Field(None, description="AutoAugment's 25 sub-policies for ImageNet")
    crop: Crop = PaddleCrop(kind="paddle")

    def works_by_blocks(self) -> bool:
        """Return whether the teacher normalises by the statistics of blocks."""
        return self.teacher_bn == "batch"

    def smallest_batch(self, stream: str) -> Smallest | None:
        """Return the images that statistics of a batch need."""
        if self.teacher_bn == "running":
            return None
        return Smallest(SMALLEST_BLOCK, "the teacher normalises by their statistics; or set method.teacher_bn=running")
