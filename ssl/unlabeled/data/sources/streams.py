"""The data of a recipe: every stream's card and split."""

from __future__ import annotations

from dataclasses import dataclass

from unlabeled.config.card import Card
from unlabeled.config.read import read_card
from unlabeled.config.recipe import Recipe
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.subset import open_part
from unlabeled.errors import UserError


@dataclass(frozen=True)
class OpenStream:
    """A stream's card and the opened split."""

    card: Card
    source: Source


def open_streams(recipe: Recipe) -> dict[str, OpenStream]:
    """Open the split of every stream of the recipe."""
    opened = {}
    for name, stream in recipe.data.streams().items():
        card = read_card(stream.card)
        try:
            source = open_source(card, stream.split, stream.root, in_order=True)
            if stream.subset is not None:
                source = open_part(source, card, stream.subset, stream.root)
        except UserError as error:  # sources name the keys of the usual stream
            raise UserError(str(error).replace("data.train.", f"data.{name}.")) from None
        opened[name] = OpenStream(card, source)
    return opened
