"""The settings of `unlabeled features`, and what its images are. Imports no torch."""

from __future__ import annotations

import os

from pydantic import Field

from unlabeled.config.card import Card
from unlabeled.config.marks import Free
from unlabeled.config.passes.shared import PassSettings
from unlabeled.config.protocols.vectors import ClipViews
from unlabeled.config.read import read_card
from unlabeled.errors import UserError, did_you_mean, nearest

_FIRST = ("train", "all")  # splits of a card that are taken unless one is named, if they are there


class FeatureSettings(PassSettings):
    """Of which images features are computed, by what, and where to."""

    out: Free[str | None] = Field(None, description="file, .npy or .safetensors; if not given, in the run's folder")
    export: str | None = Field(None, description="EXPORT or EXPORT.BLOCK; the method's first one of features")
    split: str | None = Field(None, description="of a data card")
    root: Free[str | None] = Field(None, description="folder of the data of a card; overrides the card's own")
    clip: ClipViews = Field(ClipViews(), description="of networks for clips")
    max_corrupt: Free[float] = Field(1.0, ge=0, le=1, description="share of unreadable images that is put up with")


def folder_or_card(place: str, split: str | None = None, root: str | None = None) -> tuple[str, Card, str] | None:
    """Return the name for a file of features of a card's split, the card and the split; None: `place` is a folder.

    Raises UserError for what is neither, and for a split or root beside a folder.
    """
    path = os.path.expanduser(place)
    if os.path.isdir(path):
        for key, value in (("split", split), ("root", root)):
            if value is not None:
                raise UserError(f"'{key}' goes with a data card, but {place} is a folder; leave it out")
        return None
    if os.path.exists(path) and not path.endswith((".yaml", ".yml")):
        raise UserError(f"'{place}' is not a folder of images, nor a data card")
    if "/" in place and not os.path.exists(path):
        parent, name = os.path.split(path)
        beside = sorted(os.listdir(parent)) if os.path.isdir(parent) else []
        question = did_you_mean(os.path.join(os.path.dirname(place), near) for near in nearest(name, beside))
        raise UserError(f"'{place}' is not a folder: it does not exist.{question}")
    try:
        card = read_card(place, own=True)
    except UserError as error:
        raise UserError(str(error) if os.path.exists(path) else f"no folder '{place}', and {error}") from error
    chosen = split or next((name for name in _FIRST if name in card.splits), next(iter(card.splits)))
    return f"{card.name}-{chosen}", card, chosen
