"""What counts as a label: a whole number from 0 on, or -1 where the class is unknown; checked where a set is opened."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlabeled.errors import UserError

HIGHEST = 10_000_000  # no set has so many classes: a larger number is an id, and tables by class would not fit
_LONGEST = 1 << 24  # bytes of a member that holds a label
_ALLOWED = "allowed: whole numbers from 0 on, and -1 for unknown"


def class_numbers(values: Any, file: Path, images: int, classes: Sequence[str] | None = None, first: int = 0,
                  ) -> np.ndarray:
    """Return the labels of a file as int64 [images], counted from 0.

    values: one number per image; whole numbers that are stored as floats will do. first: number of the first class in
    the file; only where it is 0 may -1 stand for unknown. Raises UserError that names the file if there are not as many
    labels as images, or for a value that is no class, of `classes` where they are named.
    """
    try:
        labels = np.asarray(values)
    except ValueError:  # rows of different lengths
        labels = np.array(None)
    if labels.dtype.kind not in "iuf" or labels.ndim != 1:
        cure = {"O": "save it as int64", "b": "save it with astype(numpy.int64)"}.get(labels.dtype.kind, "")
        if labels.ndim == 2:
            cure = "take labels[:, 0]" if labels.shape[1] == 1 else "of one-hot rows take labels.argmax(1)"
        raise UserError(f"{file}: labels are {labels.dtype} {list(labels.shape)}; allowed: one whole number per image, "
                        f"[{images}]{cure and '; '}{cure}")
    if len(labels) != images:
        raise UserError(f"{file}: {images} images, but labels are {labels.dtype} {list(labels.shape)}: the file is not "
                        "whole, or they belong to another set")
    top = HIGHEST if classes is None else first + len(classes) - 1
    with np.errstate(invalid="ignore"):  # NaN is whole and in no range
        whole = labels == np.trunc(labels) if labels.dtype.kind == "f" else np.ones(len(labels), bool)
        fits = whole & (labels >= first) & (labels <= top)
    if labels.dtype.kind != "u" and first == 0:
        fits |= labels == -1
    if not fits.all():
        place = int(np.flatnonzero(~fits)[0])
        raise UserError(f"{file}: {_no_class(labels[place].item(), classes, first)} (image {place})")
    return labels.astype(np.int64) - first


def read_label(text: bytes, rule: str, classes: Sequence[str] | None = None) -> int:
    """Return the class number in a member of a tar file: digits as text (`cls`), or KEY of a JSON object (`json:KEY`).

    Raises ValueError that says what is wrong, without a place.
    """
    field, _, key = rule.partition(":")
    if len(text) > _LONGEST:
        raise ValueError(f"a label of {len(text)} bytes; at most {_LONGEST >> 20} MiB are read")
    try:
        value = json.loads(text)[key] if field == "json" else text.decode("ascii")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(_no_number(rule, text)) from None
    if isinstance(value, str) and re.fullmatch(r"\s*(-?[0-9]{1,19})\s*", value, re.ASCII):
        value = int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= HIGHEST:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(_no_number(rule, text))
    if value != -1 and not 0 <= value <= (HIGHEST if classes is None else len(classes) - 1):
        raise ValueError(_no_class(value, classes))
    return value


def _no_class(label: float, classes: Sequence[str] | None, first: int = 0) -> str:
    """Return what to tell of a number that is no class."""
    if classes is not None and float(label).is_integer() and label >= first + len(classes):
        return f"label {label}, but only {len(classes)} classes are named"
    allowed = _ALLOWED if first == 0 else f"allowed: whole numbers from {first} on"
    return f"label {label} is no class; {allowed}"


def _no_number(rule: str, text: bytes) -> str:
    return f"no class number ({rule}) in {text[:60]!r}; {_ALLOWED}"
