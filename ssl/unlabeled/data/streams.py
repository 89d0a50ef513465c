"""The data of a recipe: every stream's cards and splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unlabeled.config.card import Card
from unlabeled.config.read import read_card
from unlabeled.config.recipe import Recipe, SetData, StreamData
from unlabeled.data.records.store import open_store
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.mixed import Mixed
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.subset import open_part
from unlabeled.errors import UserError


@dataclass(frozen=True)
class OpenStream:
    """A stream's cards, one unless it is mixed, and what is read, as one source."""

    cards: tuple[Card, ...]
    source: Source

    @property
    def card(self) -> Card:
        """Return the first card, whose statistics normalise images."""
        return self.cards[0]


def open_streams(recipe: Recipe) -> dict[str, OpenStream]:
    """Open what every stream of the recipe reads."""
    return {name: _open_stream(name, stream) for name, stream in recipe.data.streams().items()}


def _open_stream(name: str, stream: StreamData) -> OpenStream:
    try:
        opened = [open_set(one) for one in stream.sets()]
        cards = tuple(card for card, _ in opened)
        if not stream.mix:
            return OpenStream(cards, opened[0][1])
        weights = [one.weight for one in stream.mix if one.weight is not None]
        mixed = Mixed([source for _, source in opened], [one.labels for one in stream.mix], weights or None)
        for kind, folder in stream.records.items():
            mixed.stores[kind] = open_store(folder, mixed, kind)
        return OpenStream(cards, mixed)
    except UserError as error:  # sources name the keys of the usual stream
        raise UserError(str(error).replace("data.train.", f"data.{name}.")) from None


def open_set(wanted: SetData) -> tuple[Card, Source]:
    """Return the card and the opened split, or part of it, with what is stored of its samples."""
    card = read_card(wanted.card)
    whole = open_source(card, wanted.split, wanted.root, in_order=True)
    source = whole if wanted.subset is None else open_part(whole, card, wanted.subset, wanted.root)
    for kind, folder in {**card.stores(wanted.split), **wanted.records}.items():
        _attach(kind, folder, [whole, source])
    return card, source


def _attach(kind: str, folder: str, candidates: Sequence[Source]) -> None:
    """Open a store for the whole split or, if it was made of a part of it, for that part."""
    problem: UserError | None = None
    for source in dict.fromkeys(candidates):
        try:
            source.stores[kind] = open_store(folder, source, kind)
        except UserError as error:
            problem = problem or error
        else:
            return
    assert problem is not None
    raise problem
