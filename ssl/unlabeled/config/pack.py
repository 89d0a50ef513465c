"""The settings of `unlabeled pack`. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from unlabeled.config.marks import Free
from unlabeled.config.passes.shared import Part, part_of
from unlabeled.config.recipe import Strict


class PackSettings(Strict):
    """How a set is packed."""

    store: Literal["shards", "array"] = Field("shards", description="array: a .npy file per split; images of one size")
    root: Free[str | None] = Field(None, description="folder of the data of a card; overrides the card's own")
    splits: Free[list[str] | None] = Field(None, min_length=1, description="which splits; all if not given")
    classes: Free[bool | None] = Field(
        None, description="whether sub-folders are classes; guessed and said if not given"
    )
    short_side: int | None = Field(
        None, gt=0, description="resize larger images to this shorter side, as JPEG; pixels. All videos are coded "
        "anew, with a key frame every 16 frames")
    jpeg_quality: int = Field(95, ge=1, le=100, description="of resized images")
    shard_mb: float = Field(256, gt=0, description="megabytes of a shard, about")
    shard_samples: int | None = Field(None, gt=0, description="instead of shard_mb: samples of a shard at most")
    seed: int = Field(0, ge=0, description="of the order of the samples in the shards")
    max_corrupt: Free[float] = Field(
        0.001, ge=0, le=1, description="share of unreadable images above which packing stops"
    )
    workers: Free[int] = Field(4, ge=0, description="packing processes; 0: this one")
    part: Free[str] = Field("1/1", description="3/16: the third of sixteen jobs that share the shards")

    @field_validator("part", mode="before")
    @classmethod
    def _one_of_several(cls, value: Any) -> str:
        return str(part_of(value))

    @model_validator(mode="after")
    def _options_have_a_user(self) -> PackSettings:
        own = self.model_fields_set
        if {"shard_mb", "shard_samples"} <= own and self.shard_samples is not None:
            raise ValueError("give either shard_mb or shard_samples")
        if self.store == "array" and self.share.count > 1:
            raise ValueError("'part' has no effect with store=array: one file per split is written by one job")
        for key in ("shard_mb", "shard_samples", "seed", "jpeg_quality"):
            if self.store == "array" and key in own:
                raise ValueError(f"'{key}' has no effect with store=array")
        if "jpeg_quality" in own and self.short_side is None:
            raise ValueError("'jpeg_quality' has no effect without short_side: original files are stored untouched")
        return self

    @property
    def share(self) -> Part:
        """Return the part as numbers."""
        return part_of(self.part)
