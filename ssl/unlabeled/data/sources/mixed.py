"""Several sets as one: their samples behind one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unlabeled.data.sources.base import Source
from unlabeled.data.sources.fingerprint import Names, digest
from unlabeled.data.sources.truth import Objects
from unlabeled.errors import UserError

_JOINED = 1 << 30  # bytes of images in memory up to which they are joined in one array; larger ones stay in their files
_RUNNING = ("teacher", "network", "versions", "precision", "seed")  # beginnings of keys that do not describe rows


class Mixed(Source):
    """The samples of `members` in this order; labels of members without are -1, all others must name the same classes.

    labelled: of each member, whether its labels count. weights: share of each member in an epoch, in proportion; None:
    an epoch is one pass over the union. Raises UserError for members whose classes differ, and for streamed ones.
    """

    def __init__(self, members: Sequence[Source], labelled: Sequence[bool], weights: Sequence[float] | None = None,
                 ) -> None:
        super().__init__(_joined([one.name for one in members]), _joined([one.split for one in members]))
        for one in members:
            if not one.random_access:
                raise UserError(f"data card '{one.name}', split '{one.split}', is streamed, which does not go into a "
                                "mix: that takes samples by their places")
        self.members, self.weights = list(members), weights
        self.has_clips = all(one.has_clips for one in members)
        self.starts = np.cumsum([0, *(len(one) for one in members)])
        labels = [one.labels if counts else None for one, counts in zip(members, labelled, strict=True)]
        if any(own is not None for own in labels):
            self.classes = _classes([one for one, own in zip(members, labels, strict=True) if own is not None])
            self.labels = np.concatenate([np.full(len(one), -1, np.int64) if own is None else own
                                          for one, own in zip(members, labels, strict=True)])
        arrays = [one.images for one in members if one.images is not None]
        alike = len(arrays) == len(members) and len({array.shape[1:] for array in arrays}) == 1
        if alike and sum(array.nbytes for array in arrays) <= _JOINED:
            self.images = np.concatenate(arrays)
        for start, one in zip(self.starts.tolist(), members, strict=False):
            self.unreadable |= {start + place: reason for place, reason in one.unreadable.items()}
        self._refuse_other_rows()

    def _refuse_other_rows(self) -> None:
        """Raise UserError if the rows of two sets differ in more than the teacher: a method reads one description."""
        first = self.members[0]
        for name in filter(self.has_record, first.records_about()):
            for other in self.members[1:]:
                differ = _differences(_described(first, name), _described(other, name))
                if differ:
                    raise UserError(f"the {name} rows of '{other.name}' are of another kind than those of "
                                    f"'{first.name}': {differ}; make both alike")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def key(self, index: int) -> str:
        """Return the key of the sample in its own set."""
        one, place = self._place(index)
        return one.key(place)

    def names(self) -> Names:
        """Return the keys of all samples, each behind the name of its set."""
        return Names(f"{one.name}/{one.key(i)}" for one in self.members for i in range(len(one)))

    def fingerprint(self) -> dict[str, Any]:
        """Return n, a digest of labels and weights, and the fingerprints of the sets."""
        known: dict[str, Any] = {"n": len(self)}
        if self.labels is not None:
            known["labels"] = digest(self.labels.astype(np.int64, copy=False))
        if self.weights is not None:
            known["weights"] = list(self.weights)
        return known | {f"set {number}": one.fingerprint() for number, one in enumerate(self.members)}

    def image(self, index: int) -> np.ndarray:
        """Return one image, uint8 [H, W, 3]. Raises CorruptSample."""
        one, place = self._place(index)
        return one.image(place)

    def length(self, index: int) -> int:
        """Return the number of frames of a video."""
        one, place = self._place(index)
        return one.length(place)

    def rate(self, index: int) -> float:
        """Return the frames per second of a video."""
        one, place = self._place(index)
        return one.rate(place)

    def clip(self, index: int, frames: np.ndarray) -> np.ndarray:
        """Return frames of a video, uint8 [..., H, W, 3]. Raises CorruptSample."""
        one, place = self._place(index)
        return one.clip(place, frames)

    def raw(self, index: int) -> bytes | None:
        """Return the bytes of the image's file."""
        one, place = self._place(index)
        return one.raw(place)

    def has_record(self, name: str) -> bool:
        """Return whether there is a store of the mix, or one of every set."""
        return super().has_record(name) or all(one.has_record(name) for one in self.members)

    def record(self, name: str, indices: np.ndarray, entries: np.ndarray | None = None) -> np.ndarray:
        """Return the stored rows, structured [n], of samples of any of the sets."""
        if name in self.stores:
            return super().record(name, indices, entries)
        which = np.searchsorted(self.starts, indices, "right") - 1
        none = indices[:0]
        rows = np.empty(len(indices), self.members[0].record(name, none, None if entries is None else none).dtype)
        for number in np.unique(which).tolist():
            chosen = which == number
            own = indices[chosen] - self.starts[number]
            rows[chosen] = self.members[number].record(name, own, None if entries is None else entries[chosen])
        return rows

    def without_record(self, name: str) -> dict[int, str]:
        """Return the samples that have no row in the mix's store, or in their set's."""
        if name in self.stores:
            return super().without_record(name)
        return {start + place: reason for start, one in zip(self.starts.tolist(), self.members, strict=False)
                for place, reason in one.without_record(name).items()}

    def records_about(self) -> dict[str, dict[str, Any]]:
        """Return what readers of the stored rows of the first set must know: those of the others have the same form."""
        known = self.members[0].records_about()
        return {**{name: about for name, about in known.items() if self.has_record(name)}, **super().records_about()}

    def records_digest(self) -> dict[str, str]:
        """Return what tells the stored rows of all sets from others."""
        known = {f"{name}.{number}": identity for number, one in enumerate(self.members)
                 for name, identity in one.records_digest().items() if self.has_record(name)}
        return {**known, **super().records_digest()}

    def neighbour(self, name: str, index: int, place: int) -> np.ndarray:
        """Return an image that a stored row names: of the same set as the sample, unless the store is of the mix."""
        if name in self.stores:
            return super().neighbour(name, index, place)
        one, own = self._place(index)
        return one.neighbour(name, own, place)

    def objects(self, index: int, *, masks: bool = False) -> Objects:
        """Return the objects of an image, with their masks if asked for."""
        one, place = self._place(index)
        return one.objects(place, masks=masks)

    def _place(self, index: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self.starts, index, "right")) - 1
        return self.members[number], index - int(self.starts[number])


def _described(source: Source, name: str) -> dict[str, Any]:
    """Return what is known of stored rows but for the teacher and how it ran."""
    known = {key: value for key, value in source.records_about()[name].items() if not key.startswith(_RUNNING)}
    return {**known, "form": str(source.record(name, np.empty(0, np.int64)).dtype)}


def _differences(one: dict[str, Any], other: dict[str, Any]) -> str:
    keys = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
    return "; ".join(f"{key} {str(other.get(key))[:60]} there, {str(one.get(key))[:60]} here" for key in keys[:2])


def _joined(names: list[str]) -> str:
    return "+".join(dict.fromkeys(names))


def _classes(labelled: Sequence[Source]) -> list[str] | None:
    first = labelled[0]
    for other in labelled[1:]:
        if other.classes != first.classes:
            raise UserError(f"'{first.name}' and '{other.name}' name different classes, so their labels do not go into "
                            "one mix; give both cards the same 'classes', or one of the sets labels: false")
    return first.classes
