"""The settings of `unlabeled labelmaps`. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from unlabeled.config.passes.shared import SplitPassSettings


class LabelmapSettings(SplitPassSettings):
    """What is kept of every image's map."""

    k: int | None = Field(
        None, gt=0, description="classes that are kept of every cell, those with the largest logits; null: 5, or all"
    )
    size: int | None = Field(
        None, gt=0, description="side of the square that images are resized to, pixels; null: the teacher's own"
    )
