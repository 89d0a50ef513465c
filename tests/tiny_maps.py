"""Label maps for tiny runs, of no network: rows with the right form."""

from __future__ import annotations

import functools
import shutil
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path

import numpy as np
from tests.data.toy_stores import write_store

from unlabeled.config.read import read_card
from unlabeled.data.sources.open import open_source


@functools.cache
def labelmaps() -> Path:
    """Keep label maps of digits' training images, equal in every process: 3 logits in each of 4 x 4 cells."""
    folder = Path(tempfile.mkdtemp(prefix="labelmaps-"))
    Finalize(None, shutil.rmtree, [folder, True], exitpriority=0)  # also runs where a process of multiprocessing ends
    source = open_source(read_card("digits"), "train")
    random = np.random.default_rng(0)
    logit = -np.sort(-random.normal(2.0, 4.0, (len(source), 3, 4, 4)), 1).astype(np.float16)
    index = random.permuted(np.broadcast_to(np.arange(10, dtype=np.uint16), (len(source), 4, 4, 10)), axis=3)
    columns = {"logit": logit, "index": np.moveaxis(index[..., :3], 3, 1)}
    about = {"classes": source.classes, "num_classes": 10, "orientation": "row_major_HW", "resize": "squash"}
    return write_store(folder, source, "labelmap", columns, block=500, **about)
