"""Paths in a recipe, made independent of the folder in which the command was given."""

from __future__ import annotations

import os

from unlabeled.config.files import independent
from unlabeled.config.read import read_card
from unlabeled.config.recipe import Recipe, StreamData


def placed(recipe: Recipe) -> Recipe:
    """Return the recipe as a run keeps it: roots and cards of one's own as absolute paths, so that later commands find
    them from any folder.

    Raises UserError for a card that is not there or a root that cannot be resolved.
    """
    streams = {name: _placed(stream) for name, stream in recipe.data.streams().items()}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=streams)})


def _placed(stream: StreamData) -> StreamData:
    card, root = read_card(stream.card), stream.root
    if root is not None or card.root is not None:
        place = card.location(root)
        if "://" not in place and (root is not None or not os.path.isabs(place)):
            root = os.path.abspath(place)
    return stream.model_copy(update={"root": root, "card": independent("data", stream.card)})
