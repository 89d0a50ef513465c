"""The settings of `unlabeled convert ... format=ml-dr`. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from unlabeled.config.passes.shared import MOST_CLASSES, SplitPassSettings


class MlDrFiles(SplitPassSettings):
    """Reinforced sets of apple/ml-dr: <index>.pth.tar for every image, and config.pth.tar."""

    size: int | None = Field(None, gt=0, description="side of the views, pixels, where config.pth.tar does not say it")
    classes: int | None = Field(None, gt=0, le=MOST_CLASSES, description="their number, where the card names none")
