"""Parts of a split: a few labels per class, published lists of images, or any samples by their places."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from unlabeled.config.card import Card, Folder, Listed
from unlabeled.config.read import read_card
from unlabeled.config.recipe import Subset
from unlabeled.data.sources.base import Pixels, Source
from unlabeled.data.sources.files.listing import check_folder
from unlabeled.data.sources.files.lists import read_lines
from unlabeled.data.sources.files.reading import reading
from unlabeled.data.sources.fingerprint import digest
from unlabeled.data.sources.folder import FolderSource
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.truth import Objects
from unlabeled.errors import UserError, did_you_mean, nearest
from unlabeled.ops.random import permutation


class Part(Source):
    """The samples of `source` at the places `indices` int64 [n], in that order."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        super().__init__(source.name, source.split)
        self.source, self.indices, self.classes = source, indices, source.classes
        self.has_clips = source.has_clips
        self.labels = source.labels_of(indices)
        self.images = None if source.images is None else source.images[indices]
        self.unreadable = {i: source.unreadable[j] for i, j in enumerate(indices.tolist()) if j in source.unreadable}

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        """Return the name under which people find the sample again."""
        return self.source.key(int(self.indices[index]))

    def fingerprint(self) -> dict[str, Any]:
        """Return that of the whole split, with the number of its samples that are here and a digest of their places."""
        return {**self.source.fingerprint(), "n": len(self), "of": len(self.source), "places": digest(self.indices)}

    def image(self, index: int) -> np.ndarray:
        """Return one image, uint8 [H, W, 3]. Raises CorruptSample."""
        return self.source.image(int(self.indices[index]))

    def length(self, index: int) -> int:
        """Return the number of frames of a video."""
        return self.source.length(int(self.indices[index]))

    def rate(self, index: int) -> float:
        """Return the frames per second of a video."""
        return self.source.rate(int(self.indices[index]))

    def clip(self, index: int, frames: np.ndarray) -> np.ndarray:
        """Return frames of a video, uint8 [..., H, W, 3]. Raises CorruptSample."""
        return self.source.clip(int(self.indices[index]), frames)

    def has_record(self, name: str) -> bool:
        """Return whether there is a store of this part, or of the whole split."""
        return super().has_record(name) or self.source.has_record(name)

    def record(self, name: str, indices: np.ndarray, entries: np.ndarray | None = None) -> np.ndarray:
        """Return stored rows: those kept of this part, or of the whole split."""
        if name in self.stores:
            return super().record(name, indices, entries)
        return self.source.record(name, self.indices[indices], entries)

    def without_record(self, name: str) -> dict[int, str]:
        """Return the samples that have no row in a store."""
        if name in self.stores:
            return super().without_record(name)
        gaps = self.source.without_record(name)
        return {i: gaps[j] for i, j in enumerate(self.indices.tolist()) if j in gaps} if gaps else {}

    def records_about(self) -> dict[str, dict[str, Any]]:
        """Return what readers of the stored rows must know."""
        return {**self.source.records_about(), **super().records_about()}

    def records_digest(self) -> dict[str, str]:
        """Return what tells the stored rows from others."""
        return {**self.source.records_digest(), **super().records_digest()}

    def neighbour(self, name: str, index: int, place: int) -> np.ndarray:
        """Return an image that a stored row names, which may lie outside of this part."""
        if name in self.stores:
            return self.image(place)
        return self.source.neighbour(name, int(self.indices[index]), place)

    def objects(self, index: int, *, masks: bool = False) -> Objects:
        """Return the objects of an image, with their masks if asked for."""
        return self.source.objects(int(self.indices[index]), masks=masks)


def open_part(source: Source, card: Card, rule: Subset, root: str | None = None) -> Part:
    """Return the part of an opened split of `card` that the rule describes. Raises UserError for a bad rule or list."""
    if rule.list is not None:
        places = listed(source, read_list(card, rule.list, root))
    else:
        labels = np.empty(0, np.int64) if source.labels is None else source.labels
        places = choose(labels, rule, source.classes)
    return Part(source, np.setdiff1d(np.arange(len(source)), places) if rule.complement else places)


def choose(labels: np.ndarray, rule: Subset, names: list[str] | None = None) -> np.ndarray:
    """Return the sorted places that a rule by class chooses, int64; labels int64 [n], -1 (unknown) is never chosen.

    Raises UserError if a class has fewer labels than are asked, naming it by `names`.
    """
    if not (labels >= 0).any():
        raise UserError("a subset by class needs labels, and the split has none")
    parts = []
    for number in range(len(names)) if names else np.unique(labels[labels >= 0]).tolist():
        places = np.flatnonzero(labels == number)
        count = rule.per_class or max(1, round((rule.share or 0.0) * len(places)))
        if count > len(places):
            name = names[number] if names else str(number)
            raise UserError(f"subset.per_class is {count}, but class '{name}' has only {len(places)} labelled images")
        if rule.order == "random":
            places = places[permutation(len(places), rule.seed, "subset", number)]
        parts.append(places[:count])
    return np.sort(np.concatenate(parts))


def open_listed(card: Card, split: str, root: str | None) -> Part:
    """Open the samples of another card that a list names, in the order of the list, without labels.

    Of a folder nothing but the list is read. Raises UserError for a list that is missing or another one, and for keys
    that the other split does not hold once.
    """
    assert isinstance(card.source, Listed)
    other, rule = read_card(card.source.card), card.source
    root = card.location(root) if root is not None or card.root is not None else None
    file = Path(os.path.expanduser(os.path.expandvars(rule.list)))
    if not file.is_file():
        raise UserError(f"the list of data card '{card.name}' is missing: {file}")
    with reading(file, "no list of keys"):
        data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != rule.sha256:
        raise UserError(f"{file} is not the list of data card '{card.name}': its SHA-256 differs; make both anew")
    keys = read_lines(data)
    if isinstance(other.source, Folder) and rule.split in other.splits:
        folder = other.folder(root) / (other.splits[rule.split].path or rule.split)
        check_folder(folder)
        source: Source = FolderSource(card.name, split, folder, keys)
        source.pixels = Pixels(other.levels, other.upright)
        return Part(source, np.arange(len(keys)))
    source = open_source(other, rule.split, root)
    part = Part(source, places_of(source, keys))
    part.name, part.split, part.labels, part.classes = card.name, split, None, None
    return part


def places_of(source: Source, keys: list[str]) -> np.ndarray:
    """Return the place of every key, int64 [n]. Raises UserError for keys that are not there, or there twice."""
    places = dict.fromkeys(keys, -1)
    for place in range(len(source)):
        key = source.key(place)
        if key in places:
            if places[key] >= 0:
                raise UserError(f"split '{source.split}' of data '{source.name}' holds '{key}' twice (places "
                                f"{places[key]} and {place}), so no list can name it; rename one")
            places[key] = place
    missing = [key for key, place in places.items() if place < 0]
    if missing:
        raise UserError(f"{len(missing)} of {len(keys)} keys of the list are not in split '{source.split}' of data "
                        f"'{source.name}', the first: {', '.join(missing[:3])}; its samples are named like "
                        f"'{source.key(0)}'")
    return np.array([places[key] for key in keys], np.int64)


def read_list(card: Card, name: str, root: str | None = None) -> list[str]:
    """Return the names of a list of the card, checked by its SHA-256.

    Raises UserError for an unknown list, a missing file, or one whose sum differs.
    """
    if name not in card.lists:
        question = did_you_mean(nearest(name, card.lists))
        known = ", ".join(card.lists) or "none"
        raise UserError(f"data card '{card.name}' has no list '{name}' (it has: {known}).{question}")
    entry = card.lists[name]
    path = Path(card.folder(root)) / entry.file
    if not path.is_file():
        raise UserError(f"list '{name}' of data card '{card.name}' is missing: {path}. {entry.about}".rstrip())
    with reading(path, "no list of names"):
        data = path.read_bytes()
    lines = data.decode("utf-8", "surrogateescape").split("\n")  # of whatever else it is, the sum differs
    names = [line for line in map(str.strip, lines) if line]
    if hashlib.sha256(data).hexdigest() != entry.sha256 or len(names) != entry.samples:
        raise UserError(f"{path} is not the list '{name}' of data card '{card.name}': {len(names)} names instead of "
                        f"{entry.samples}, or other ones (its SHA-256 differs). {entry.about}".rstrip())
    return names


def listed(source: Source, names: list[str]) -> np.ndarray:
    """Return the sorted places of the samples with these file names, int64; folder and extension do not count.

    Raises UserError if a name is not in the split, or if the classes' counts differ by more than one.
    """
    places: dict[str, int] = {}
    twice: dict[str, int] = {}
    for i in range(len(source)):
        stem = PurePosixPath(source.key(i)).stem
        if places.setdefault(stem, i) != i:
            twice[stem] = i
    stems = [PurePosixPath(name).stem for name in names]
    unknown = [name for name, stem in zip(names, stems, strict=True) if stem not in places]
    if unknown:
        raise UserError(f"{len(unknown)} of {len(names)} names of the list are not in split '{source.split}' of data "
                        f"'{source.name}', the first: {', '.join(unknown[:3])}; its samples are named like "
                        f"'{source.key(0)}'")
    if twice:
        doubt = next((stem for stem in stems if stem in twice), None)
        if doubt is not None:
            raise UserError(f"the list names '{doubt}', which split '{source.split}' of data '{source.name}' holds "
                            f"twice: '{source.key(places[doubt])}' and '{source.key(twice[doubt])}'; rename one")
    part = np.unique(np.array([places[stem] for stem in stems], np.int64))
    if source.labels is not None and source.classes is not None:
        counts = np.bincount(source.labels[part], minlength=len(source.classes))
        if counts.max() - counts.min() > 1:
            low, high = source.classes[int(counts.argmin())], source.classes[int(counts.argmax())]
            raise UserError(f"the list has unequal classes: {counts.min()} of '{low}', {counts.max()} of '{high}'; it "
                            "belongs to another set or version")
    return part
