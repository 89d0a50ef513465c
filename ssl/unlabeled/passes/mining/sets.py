"""The sets that mining reads: named as CARD, CARD:SPLIT or the folder of one's own images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import torch

from unlabeled.augment.plain_crops import Whole
from unlabeled.config.card import Card
from unlabeled.config.files import independent
from unlabeled.config.read import read_card
from unlabeled.data.evaluation import ImageMaker
from unlabeled.data.overlap import twins
from unlabeled.data.records.store import Store
from unlabeled.data.sources.open import Source, open_source
from unlabeled.errors import UserError
from unlabeled.ops.measures.health import thin
from unlabeled.passes.mining.hashes import SIDE, wave_hashes

_LOOKED_AT = 64  # images of equal names that are compared
_ALIKE = 64  # bits of 256 in which the hashes of one picture differ at most, once it was cut or packed anew


@dataclass(frozen=True)
class NamedSet:
    """A split of a card, opened. name, root: of the card, as another card can name them from any folder."""

    name: str
    card: Card
    root: str | None
    source: Source

    @property
    def where(self) -> tuple[str, str, str | None]:
        """Return what is equal for equal sets."""
        return self.card.name, self.source.split, None if self.root is None else os.path.realpath(self.root)


def open_set(text: str, root: str | None, setting: str, splits: Sequence[str]) -> NamedSet:
    """Open what `text` names: CARD:SPLIT, a card's first split of `splits`, or a folder. Raises UserError, naming the
    setting, for what is neither, and for a streamed split.
    """
    if os.path.isdir(text):
        if root is not None:
            raise UserError(f"{setting}_root has no effect: {setting}={text} is a folder itself")
        text, root = "folder", os.path.abspath(text)
    name, _, split = text.rpartition(":") if ":" in text else (text, "", "")
    try:
        card = read_card(name)
    except UserError as error:
        raise UserError(f"{setting}={text}: {error} Or name a folder of images") from error
    chosen = split or next((each for each in splits if each in card.splits), next(iter(card.splits)))
    root = None if root is None else os.path.abspath(os.path.expanduser(root))
    return NamedSet(independent("data", name), card, root, open_source(card, chosen, root))


def known_images(pool: Source, known: Source, pool_store: Store) -> np.ndarray:
    """Return the places of the pool's images that stand in `known` too: int64 [n], ascending.

    They come from one file, or have one file name, folder and ending aside, that neither set has twice. Raises
    UserError if those of equal names look different: the names are numbers then, and say nothing.
    """
    same_file = np.flatnonzero(twins(known, pool) >= 0)
    theirs, ours = _stems(known), _stems(pool)
    named = {stem: (place, theirs[stem]) for stem, place in ours.items() if place >= 0 and theirs.get(stem, -1) >= 0}
    pairs = np.array(sorted(named.values()), np.int64).reshape(-1, 2)
    _refuse_other_pictures(pool, known, pool_store, pairs[~np.isin(pairs[:, 0], same_file)])
    return np.union1d(same_file, pairs[:, 0])


def _stems(source: Source) -> dict[str, int]:
    """Return the place of every file name without its folder and ending; -1 of names that stand there twice."""
    places: dict[str, int] = {}
    for place in range(len(source)):
        stem = PurePosixPath(source.key(place)).stem
        places[stem] = -1 if stem in places else place
    return places


def _refuse_other_pictures(pool: Source, known: Source, pool_store: Store, pairs: np.ndarray) -> None:
    """Compare some of the images that pairs [n, 2], places in pool and known, take to be one, by their hashes."""
    maker = ImageMaker(known, [Whole(SIDE)])
    compared, unlike, other = 0, 0, None
    for place in thin(torch.arange(len(pairs)), _LOOKED_AT).tolist():
        pair = pairs[place]
        crops = maker.make(pair[1:]).crops[0]
        waves = wave_hashes(crops).numpy(), pool_store.rows(pair[:1])["waves"]
        if len(crops) and waves[0].any() and waves[1].any():
            compared += 1
            if np.bitwise_count(waves[0] ^ waves[1]).sum() > _ALIKE:
                unlike, other = unlike + 1, pair
    if other is not None and 2 * unlike > compared:
        raise UserError(f"{len(pairs)} images of the pool have file names of the training set, but {unlike} of "
                        f"{compared} that were compared show something else, such as '{pool.key(int(other[0]))}' and "
                        f"'{known.key(int(other[1]))}': the names are numbers and say nothing; leave known=... out")
