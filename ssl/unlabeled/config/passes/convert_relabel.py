"""The settings of `unlabeled convert ... format=relabel-pt`. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from unlabeled.config.marks import Free
from unlabeled.config.passes.shared import MOST_CLASSES, SplitPassSettings

Orientation = Literal["hw", "wh"]


class RelabelFiles(SplitPassSettings):
    """ReLabel's label maps: CLASS/IMAGE.pt for every image CLASS/IMAGE.jpeg, [2, k, M, M]."""

    teacher: Free[str | None] = Field(
        None, description="a classifier, as for labelmaps, that decides by test which axis of the maps is which"
    )
    orientation: Orientation | None = Field(
        None, description="instead of a teacher: rows or columns of the image come first"
    )
    classes: int | None = Field(None, gt=0, le=MOST_CLASSES, description="their number, where the card names none")

    @model_validator(mode="after")
    def _one_judge(self) -> RelabelFiles:
        if (self.teacher is None) == (self.orientation is None):
            raise ValueError("nobody published which axis of the maps is which: give teacher=TEACHER, which decides it "
                             "by test, or orientation=hw (rows first) or wh, but not both")
        return self
