"""Paths in a recipe, made independent of the folder in which the command was given."""

from __future__ import annotations

import os
from typing import TypeVar

from unlabeled.config.files import independent
from unlabeled.config.read import read_card
from unlabeled.config.recipe import Recipe, SetData, StreamData

Placed = TypeVar("Placed", bound=SetData)


def placed(recipe: Recipe) -> Recipe:
    """Return the recipe as a run keeps it: roots and cards of one's own as absolute paths, so that later commands find
    them from any folder.

    Raises UserError for a card that is not there or a root that cannot be resolved.
    """
    streams = {name: _placed(stream) for name, stream in recipe.data.streams().items()}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=streams)})


def _placed(stream: StreamData) -> StreamData:
    if stream.mix:
        return stream.model_copy(update={"mix": [_placed_set(one) for one in stream.mix]})
    return _placed_set(stream)


def _placed_set(one: Placed) -> Placed:
    card, root = read_card(one.card), one.root
    if root is not None or card.root is not None:
        place = card.location(root)
        if "://" not in place and (root is not None or not os.path.isabs(place)):
            root = os.path.abspath(place)
    records = {kind: os.path.abspath(os.path.expanduser(folder)) for kind, folder in one.records.items()}
    return one.model_copy(update={"root": root, "card": independent("data", one.card), "records": records})
