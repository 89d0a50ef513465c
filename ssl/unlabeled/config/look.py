"""The settings of `unlabeled look`. Imports no torch."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator

from unlabeled.config.recipe import Precision, Strict

OF_THE_SET = ("card", "root", "split", "count")
OF_THE_PAIR = ("pixel", "seed")


class LookSettings(Strict):
    """Which images are looked at, with which network."""

    card: str | None = Field(None, description="data card to take images from; null: the one of the run")
    root: str | None = Field(None, description="folder of the data; overrides the card's own")
    split: str | None = Field(None, description="null: test, else val, else the run's own or the first")
    count: int = Field(4, gt=0, description="images, spread evenly over the split")
    export: str | None = Field(None, description="EXPORT or EXPORT.BLOCK, such as backbone.layer3; null: the default")
    size: int | None = Field(None, gt=0, description="side of image and views for the network; null: as in training")
    precision: Precision = Field(
        "auto", description="of the network: auto is bf16 on GPUs and on CPUs with AMX, else fp32"
    )
    pixel: tuple[int, int] | None = Field(
        None, description="ROW,COL, from 0, of the cell of view 1 that others are compared with; null: the central one"
    )
    seed: int = Field(0, ge=0, description="of the two crops")
    out: str | None = Field(None, description="folder of the pictures; null: look/updateUUUUUUUU in the run's folder")

    @field_validator("pixel", mode="before")
    @classmethod
    def _row_and_column(cls, given: Any) -> Any:
        if given is None:
            return None
        if not isinstance(given, str) or not re.fullmatch(r"[0-9]+,[0-9]+", given):
            raise ValueError("'pixel' needs ROW,COL, two whole numbers from 0, such as pixel=3,5")
        row, column = given.split(",")
        return int(row), int(column)
