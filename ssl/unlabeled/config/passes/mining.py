"""The settings of `unlabeled mine`. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from unlabeled.config.marks import Free
from unlabeled.config.passes.shared import PassSettings

_SET = "CARD, CARD:SPLIT or a folder of images"


class MineSettings(PassSettings):
    """Which images are chosen from which pool, and what counts as a duplicate (defaults: arXiv 2103.05959 and ours)."""

    pool: Free[str] = Field(description=f"images to choose from: {_SET} (split: train)")
    pool_root: Free[str | None] = Field(None, description="folder of the pool's data; overrides the card's own")
    against: Free[str | None] = Field(
        None, description=f"evaluation set, whose images and near copies are left out of the choice: {_SET} (split: "
        "test, else val)")
    against_root: Free[str | None] = Field(None, description="folder of the evaluation set's data")
    known: Free[str | None] = Field(
        None, description=f"training set, whose images are left out, by file or file name: {_SET} (split: train)")
    known_root: Free[str | None] = Field(None, description="folder of the training set's data")
    out: Free[str] = Field(description="folder of what is computed and of the result; the same command goes on there")
    per_class: int = Field(4000, gt=0, description="images of every class at most")
    multi_class_top_p: int = Field(1, gt=0, description="classes that one image may serve: its most probable ones")
    cosine: float = Field(0.8, gt=0, le=1, description="of the teacher's features, from which on local features decide")
    candidates: int = Field(20, gt=0, description="images of the pool that an evaluation image is compared with")
    hash_bits: int = Field(
        32, ge=0, le=255, description="bits of 256 in which the hashes of one picture may differ; 0: equal hashes only")
    inliers: int = Field(25, ge=4, description="matching local features that make a pair of duplicates")
    inlier_share: float = Field(0.3, ge=0, le=1, description="of all matches that they must be")
