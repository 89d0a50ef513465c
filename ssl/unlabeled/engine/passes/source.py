"""The samples of a pass."""

from __future__ import annotations

from unlabeled.config.card import Card
from unlabeled.config.passes.shared import SplitPassSettings
from unlabeled.config.read import read_card
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.mixed import Mixed
from unlabeled.data.sources.open import open_source
from unlabeled.errors import UserError


def open_cards(settings: SplitPassSettings) -> Source:
    """Open the split of the card that the settings name, or of several cards as one set.

    Raises UserError as `open_split` does, for cards whose classes differ, and for one root of several cards.
    """
    if isinstance(settings.card, str):
        return open_split(read_card(settings.card), settings.split, settings.root)
    if settings.root is not None:
        raise UserError("'root' goes with one card; give each of several cards its own root")
    members = [open_split(read_card(name), settings.split) for name in settings.card]
    return Mixed(members, [True] * len(members))


def open_split(card: Card, split: str, root: str | None = None) -> Source:
    """Open a split for a pass. Raises UserError as `open_source` does, and for a streamed one."""
    source = open_source(card, split, root, in_order=True)
    refuse_streamed(source)
    return source


def refuse_streamed(source: Source) -> None:
    """Raise UserError for a split whose samples have no places."""
    if not source.random_access:
        raise UserError(f"data card '{source.name}', split '{source.split}', is streamed: its samples have no places "
                        "at which rows could be kept; copy its shards and name them in a card with source kind shards")
