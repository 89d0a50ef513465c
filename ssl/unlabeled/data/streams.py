"""The data of a recipe: every stream's cards and splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unlabeled.config.card import Card
from unlabeled.config.read import read_card
from unlabeled.config.recipe import Recipe, SetData, StreamData
from unlabeled.data.records.store import open_store, refuse_no_store
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


def open_streams(recipe: Recipe, records: Mapping[str, Sequence[str]] | None = None) -> dict[str, OpenStream]:
    """Open what every stream of the recipe reads.

    records: by stream the stores that its method reads; others that a card keeps are left alone. None: all are. Raises
    UserError for bad input, for stores that are missing, and for those that the recipe names and nothing reads.
    """
    return {name: _open_stream(name, stream, None if records is None else records.get(name, ()))
            for name, stream in recipe.data.streams().items()}


def _open_stream(name: str, stream: StreamData, records: Sequence[str] | None) -> OpenStream:
    try:
        if records is not None:
            _refuse_unread(stream, records)
        opened = _opened(stream, records or ())
        for kind in records or ():
            refuse_no_store(opened.source, kind, name)
        return opened
    except UserError as error:  # sources name the keys of the usual stream
        raise UserError(str(error).replace("data.train.", f"data.{name}.")) from None


def _refuse_unread(stream: StreamData, records: Sequence[str]) -> None:
    for one in {id(one): one for one in [stream, *stream.sets()]}.values():
        idle = sorted(set(one.records) - set(records))
        if idle:
            raise UserError(f"data.train.records.{idle[0]} has no effect: the method with these options reads "
                            f"{' and '.join(records) or 'no stored rows'}; leave it out")


def _opened(stream: StreamData, records: Sequence[str]) -> OpenStream:
    opened = [open_set(one, records) for one in stream.sets()]
    cards = tuple(card for card, _ in opened)
    if not stream.mix:
        return OpenStream(cards, opened[0][1])
    weights = [one.weight for one in stream.mix if one.weight is not None]
    mixed = Mixed([source for _, source in opened], [one.labels for one in stream.mix], weights or None)
    for kind, folder in ((kind, stream.records[kind]) for kind in records if kind in stream.records):
        mixed.stores[kind] = open_store(folder, mixed, kind)
    return OpenStream(cards, mixed)


def open_set(wanted: SetData, records: Sequence[str] = ()) -> tuple[Card, Source]:
    """Return the card and the opened split, or part of it, with those stores of its samples that are wanted."""
    card = read_card(wanted.card)
    whole = open_source(card, wanted.split, wanted.root, in_order=True)
    source = whole if wanted.subset is None else open_part(whole, card, wanted.subset, wanted.root)
    stores = {**card.stores(wanted.split), **wanted.records}
    for kind in [kind for kind in records if kind in stores]:
        _attach(kind, stores[kind], [whole, source])
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
