"""ReaL: ImageNet's validation images with all the classes that people see in them (Beyer et al., arXiv 2006.07159)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from torch import Tensor

from unlabeled.data.sources.base import Source
from unlabeled.errors import UserError
from unlabeled.evaluation.vectors.scores import Score
from unlabeled.ops.machine.files import read_json

_NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")
_WHERE = "the published file is real.json of github.com/google-research/reassessed-imagenet"


class RealLabels:
    """What ReaL's file says of the images of a split: the classes of each one, bool [n, classes].

    file: JSON, a list of lists of classes in the order of the images' numbers. Raises UserError for another file, and
    for images without a number, as in ILSVRC2012_val_00000001.JPEG.
    """

    def __init__(self, file: Path, source: Source, classes: int) -> None:
        lists = _read(file, classes)
        self.seen = np.zeros((len(source), classes), bool)
        for place in range(len(source)):
            key = source.key(place)
            match = _NUMBERED.search(key)
            if match is None:
                raise UserError(f"real={file}: image '{key}' has no number of ImageNet's validation set, such as "
                                "ILSVRC2012_val_00000001; ReaL labels only these")
            number = int(match[1])
            if not 1 <= number <= len(lists):
                raise UserError(f"real={file} holds the labels of {len(lists)} images, not of '{key}'; {_WHERE}")
            self.seen[place, lists[number - 1]] = True

    def score(self, predicted: Tensor, index: Tensor) -> Score:
        """Return the share of predictions [n] that are among the labels of the images at places `index` [n].

        Images without a label are skipped. Raises UserError if none is left.
        """
        seen = self.seen[index.cpu().numpy()]
        labelled = seen.any(1)
        if not labelled.any():
            raise UserError("none of the images that can be read has a label of ReaL's")
        right = seen[np.arange(len(seen)), predicted.cpu().numpy()][labelled]
        details = {"images": int(labelled.sum()), "skipped": int((~labelled).sum()),
                   "chance": 100.0 * float(seen[labelled].mean(0).max())}
        return Score(100.0 * float(right.mean()), details=details)


def _read(file: Path, classes: int) -> list[list[int]]:
    """Return the lists of classes. Raises UserError for anything else."""
    try:
        lists = read_json(file)
    except OSError as error:
        raise UserError(f"real={file} cannot be read: {error.strerror or error}; {_WHERE}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"real={file} is no JSON ({str(error)[:80]}); {_WHERE}") from error
    if not isinstance(lists, list) or not all(isinstance(one, list) for one in lists):
        raise UserError(f"real={file} holds no list of lists of classes; {_WHERE}")
    for number, one in enumerate(lists, 1):
        for label in one:
            if type(label) is not int or not 0 <= label < classes:
                raise UserError(f"real={file}: label {label!r:.40} of image {number} is no class; allowed: whole "
                                f"numbers from 0 to {classes - 1}, those of the classifier")
    return lists
