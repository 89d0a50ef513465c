"""The samples of a pass."""

from __future__ import annotations

from unlabeled.config.passes.shared import SplitPassSettings
from unlabeled.config.recipe import SetData
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.mixed import Mixed
from unlabeled.data.streams import open_set


def open_sources(settings: SplitPassSettings) -> Source:
    """Open the split of the card, or of several cards as one set. Raises UserError as `open_source` does."""
    cards = [settings.card] if isinstance(settings.card, str) else settings.card
    opened = [open_set(SetData(card=card, split=settings.split, root=settings.root))[1] for card in cards]
    return opened[0] if len(opened) == 1 else Mixed(opened, [True] * len(opened))
