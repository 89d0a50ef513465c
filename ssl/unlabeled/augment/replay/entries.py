"""What one stored entry is: the parameters of a view in fixed-width fields, drawn for a place of a split and an entry.

Fields of a row stand behind one another (`data.records`): crop, top, left, height, width in pixels of the image; flip;
op and magnitude of two operations of RandAugment (`augment.operations`), op 255 for none; erase, a box in pixels of the
view, 65535 for none; class and prob, the teacher's most probable classes. Entries may be mixed with another image: its
place, `partner` (-1 for none); a second set of parameters for it, whose names end in 2; mixup, the share that the first
image keeps (1 for none); cut, top, left, bottom, right of the part that is the partner's, 65535 for none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unlabeled.augment.operations import Interpolation, rand_augment
from unlabeled.augment.replay import erasing
from unlabeled.config.passes.reinforce import KIND
from unlabeled.ops.random import uniforms

Fields = dict[str, tuple[str, tuple[int, ...]]]

OPERATIONS = 2  # of RandAugment per view
SKIPPED = 255  # op of a view that has none
RANDAUGMENT_INTERPOLATION: Interpolation = "nearest"  # of stored views, as the published ones were made
MOST_ENTRIES = 1 << 20
_ENTRY_BITS = MOST_ENTRIES.bit_length() - 1
_PHOTOMETRIC: Fields = {"op": ("|u1", (OPERATIONS,)), "magnitude": ("<f4", (OPERATIONS,)), "erase": ("<u2", (4,))}
_VIEW: Fields = {"crop": ("<u2", (4,)), "flip": ("|u1", ()), **_PHOTOMETRIC}
_MIXED: Fields = {"partner": ("<i8", ()), "mixup": ("<f4", ()), "cut": ("<u2", (4,))}


def fields(entries: int, topk: int, mix: bool) -> Fields:
    """Return the fields of one row: numpy's code and the shape, whose first number is that of the entries."""
    of_one = {**_VIEW, "class": ("<u2", (topk,)), "prob": ("<f2", (topk,))}
    if mix:
        of_one |= _MIXED | {f"{name}2": kind for name, kind in _VIEW.items()}
    return {name: (code, (entries, *shape)) for name, (code, shape) in of_one.items()}


@dataclass(frozen=True)
class Law:
    """How views are drawn, beside their crop: RandAugment's bin of 31 or None, probability of erasing, mixing.

    size: side of the view, pixels. mix: mixup and CutMix with another image, each with probability 1/2.
    """

    size: int
    magnitude: int | None
    erasing: float
    mix: bool = False


def numbers(place: int, entries: int) -> np.ndarray:
    """Return what the draws of the entries of the sample at a place depend on beside the seed, int64 [entries].

    So an entry is the same however many there are, and in whatever order samples are read.
    """
    return (place << _ENTRY_BITS) + np.arange(entries)


def draw(law: Law, which: np.ndarray, seed: int, second: bool = False) -> dict[str, np.ndarray]:
    """Draw op, magnitude and erase of the entries `which` [n] (see `numbers`); second: of what is mixed into them."""
    n, name = len(which), f"{KIND}{2 if second else ''}"
    erase = erasing.draw(uniforms(which, erasing.DRAWS, seed, name, "erase"), law.erasing, law.size)
    if law.magnitude is None:
        op, magnitude = np.full((n, OPERATIONS), SKIPPED), np.zeros((n, OPERATIONS))
    else:
        drawn = torch.from_numpy(uniforms(which, 2 * OPERATIONS, seed, name, "operations"))
        op, magnitude = (x.numpy() for x in rand_augment(drawn, law.magnitude, law.size))
    return typed({"op": op, "magnitude": magnitude, "erase": erase})


def draw_mixing(law: Law, samples: int, which: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Draw partner, mixup and cut of the entries `which` [n], from a split of so many samples.

    mixup keeps Beta(1, 1) / 2 of the first image, so the partner has the larger part, as in the published code; CutMix
    (arXiv 1905.04899) with Beta(1, 1). Both take the same partner, drawn evenly, perhaps the sample itself.
    """
    mixes, cuts, chosen = uniforms(which, 3, seed, KIND, "mixing").T
    share, keep, *centre = uniforms(which, 4, seed, KIND, "shares").T
    partner = np.where((mixes < 0.5) | (cuts < 0.5), (chosen * samples).astype(np.int64), -1)
    half = (law.size * np.sqrt(1 - keep)).astype(np.int64)[:, None] // 2
    middle = (np.stack(centre, 1) * law.size).astype(np.int64)
    cut = np.concatenate([middle - half, middle + half], 1).clip(0, law.size)
    return typed({"partner": partner, "mixup": np.where(mixes < 0.5, share / 2, 1.0),
                  "cut": np.where(cuts[:, None] < 0.5, cut, erasing.NONE)})


def unmixed(n: int) -> dict[str, np.ndarray]:
    """Return partner, mixup and cut of n views that are not mixed."""
    return typed({"partner": np.full(n, -1), "mixup": np.ones(n), "cut": np.full((n, 4), erasing.NONE)})


def typed(values: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return values of fields in the types in which they are stored, so that what is shown is what is stored."""
    kinds = _VIEW | _MIXED
    return {name: np.asarray(value).astype(kinds[name][0]) for name, value in values.items()}
