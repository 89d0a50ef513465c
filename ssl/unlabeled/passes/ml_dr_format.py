"""The published format of reinforced sets (apple/ml-dr): entries with named parameters, and their compressed form.

A sample's parameters are a dictionary by the names of its transforms; a value is a pair where the sample may be mixed
with a second one, `id2`. Compressed they are a list in the order of the transforms, without names; what no transform
draws is left out, and an unmixed sample has single values. `<index>.pth.tar` holds (index, entries), `config.pth.tar`
what they were made with.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlabeled.augment.operations import RAND_AUGMENT
from unlabeled.augment.replay import erasing
from unlabeled.augment.replay.entries import OPERATIONS, SKIPPED, unmixed
from unlabeled.errors import UserError

# in this order, whatever the order in the configuration
TRANSFORMS = (
    "uint8", "resize", "center_crop", "random_crop", "random_resized_crop", "random_horizontal_flip", "rand_augment",
    "to_tensor", "random_erase", "normalize", "mixup", "cutmix",
)  # fmt: skip
_DRAW_NOTHING = ("uint8", "center_crop", "to_tensor", "normalize")
_MIXING = ("mixup", "cutmix")

Params = dict[str, Any]


def compress(params: Params, order: Sequence[str]) -> list[Any]:
    """Return the list of a sample's parameters; order: its transforms, in which mixing is mixup or cutmix.

    A value is a pair (the sample's own, the partner's) where `order` mixes. Nothing here writes published sets: this is
    the half of the codec by which the other one, `decompress`, is held to the published arrays.
    """
    mixes = bool(set(order) & set(_MIXING))
    mixed = any(params.get(name) is not None for name in _MIXING)
    values: list[Any] = [params["id2"] if mixed else None] if mixes else []
    for name in order:
        value = params.get(name)
        if name in _DRAW_NOTHING:
            continue
        if name not in _MIXING and mixes and not mixed and value is not None:
            value = value[0]
        if name == "rand_augment" and value is not None:
            value = [_numbered(one) for one in value] if mixed else _numbered(value)
        if name == "cutmix" and value is not None:
            value = [value[0], *value[1]]
        values.append(value)
    return values


def decompress(values: Sequence[Any], order: Sequence[str]) -> Params:
    """Undo `compress`: parameters by name, of the transforms that draw any; pairs only where the sample is mixed."""
    names = [name for name in order if name not in _DRAW_NOTHING]
    mixes = bool(set(order) & set(_MIXING))
    expected = len(names) + mixes
    if len(values) != expected:
        raise ValueError(f"an entry has {len(values)} values, but its transforms draw {expected} ({', '.join(names)})")
    params: Params = {"id2": values[0]} if mixes else {"id2": None}
    params |= zip(names, values[mixes:], strict=True)
    operations, cut = params.get("rand_augment"), params.get("cutmix")
    if cut is not None:
        params["cutmix"] = [cut[0], list(cut[1:])]
    if operations is not None:
        mixed = params["id2"] is not None
        params["rand_augment"] = [_named(one) for one in operations] if mixed else _named(operations)
    return params


def _numbered(operations: Sequence[Any] | None) -> list[Any] | None:
    return operations if operations is None else [[RAND_AUGMENT.index(name), amount] for name, amount in operations]


def _named(operations: Sequence[Any] | None) -> list[Any] | None:
    return operations if operations is None else [[RAND_AUGMENT[number], amount] for number, amount in operations]


# ---- from parameters to our fields


def row_of(params: Params, size: int, mix: bool) -> dict[str, np.ndarray]:
    """Return the fields of one entry (see `augment.replay.entries`) but class and prob; params: decompressed.

    size: side of the view, pixels. Raises ValueError for what no view can have.
    """
    mixed = params["id2"] is not None
    own = {name: value for name, value in params.items() if name not in ("id2", *_MIXING)}
    row = _view(_side(own, 0) if mixed else own, size)
    if not mix:
        return row
    mixing = {name: values[0] for name, values in unmixed(1).items()}
    second = row
    if mixed:
        second = _view(_side(own, 1), size)
        share, cut = params.get("mixup"), params.get("cutmix")
        mixing = {"partner": np.array(params["id2"], np.int64),
                  "mixup": np.array(1.0 if share is None else share, np.float32),
                  "cut": mixing["cut"] if cut is None else _box(cut[1], size)}
    return {**row, **mixing, **{f"{name}2": value for name, value in second.items()}}


def _side(params: Params, side: int) -> Params:
    """Return what was drawn of one image of a mixed sample; a transform that was skipped of both has no pair."""
    return {name: None if pair is None else pair[side] for name, pair in params.items()}


def _view(params: Params, size: int) -> dict[str, np.ndarray]:
    crop = params.get("random_resized_crop")
    if crop is None:
        crop = [*params["random_crop"], size, size] if params.get("random_crop") is not None else [0, 0, size, size]
    operations = params.get("rand_augment")
    if operations is not None and len(operations) != OPERATIONS:
        raise ValueError(f"an entry has {len(operations)} operations of RandAugment; allowed: {OPERATIONS}")
    erase = params.get("random_erase")
    return {
        "crop": _box(crop, 1 << 16),
        "flip": np.array(bool(params.get("random_horizontal_flip")), np.uint8),
        "op": np.array([SKIPPED] * OPERATIONS if operations is None else [RAND_AUGMENT.index(n) for n, _ in operations],
                       np.uint8),
        "magnitude": np.array([0.0] * OPERATIONS if operations is None else [m for _, m in operations], np.float32),
        "erase": np.full(4, erasing.NONE, np.uint16) if erase is None else _box(erase, size),
    }


def _box(numbers: Sequence[int], limit: int) -> np.ndarray:
    box = np.array(numbers)
    if box.shape != (4,) or box.min() < 0 or box.max() > limit or box.max() >= erasing.NONE:
        raise ValueError(f"{list(numbers)} are no box in {limit} pixels")
    return box.astype(np.uint16)


# ---- files


class _PlainUnpickler(pickle.Unpickler):
    """Knows numbers, strings and plain containers: a pickle may name any function, which loading it would call."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it holds tensors")


def read_plain(file: Path) -> Any:
    """Return what a file of torch.save holds, if that is numbers, strings and plain containers.

    Nothing that the file names is imported or called. Raises UserError for anything else, and for a damaged file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            content = archive.read(names[0])
        return _PlainUnpickler(io.BytesIO(content)).load()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{file} is not read: {error}, but stored entries are numbers and plain containers only"
                        ) from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise UserError(f"{file} is no file of stored entries, or damaged: {type(error).__name__}: {error}") from error


def transforms_of(config: Any) -> dict[str, Any]:
    """Return the transforms of a configuration, at whatever depth it names them, with their options, in order.

    Raises ValueError if it names none.
    """
    found: dict[str, Any] = {}
    levels = [config]
    while levels and not found:
        mappings = [level for level in levels if isinstance(level, dict)]
        fullest = max(mappings, key=lambda mapping: len(set(mapping) & set(TRANSFORMS)), default={})
        found = {name: fullest[name] for name in TRANSFORMS if fullest.get(name) not in (None, False)}
        inside = [mapping.values() for mapping in mappings] + [x for x in levels if isinstance(x, list | tuple)]
        levels = [value for values in inside for value in values]
    if not found:
        raise ValueError(f"it names no transform; known are {', '.join(TRANSFORMS)}")
    return found
