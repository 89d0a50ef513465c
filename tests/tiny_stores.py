"""Stores of rows for tiny runs, made as the passes make them, of networks with random weights."""

from __future__ import annotations

import functools
import shutil
import tempfile
from multiprocessing.util import Finalize
from pathlib import Path

import numpy as np
import torch
from tests.data.toy_stores import write_store
from torch import nn

from unlabeled.augment.replay.crops import drawing
from unlabeled.augment.replay.entries import Law
from unlabeled.config.augment import PaddedCrop, StoredResizedCrop
from unlabeled.config.read import read_card
from unlabeled.data.sources.open import open_source
from unlabeled.methods.base import Input
from unlabeled.passes.entries import KIND, EntryMaker
from unlabeled.passes.teachers import Teachers, teach

ENTRIES, TOPK = 3, 4


@functools.cache
def reinforcement(mix: bool) -> Path:
    """Make entries of the digits, equal in every process; mixed ones of resized crops, the others of padded ones."""
    folder = Path(tempfile.mkdtemp(prefix="reinforcement-"))
    Finalize(None, shutil.rmtree, [folder, True], exitpriority=0)  # also runs where a process of multiprocessing ends
    crop = StoredResizedCrop(size=8, area=(0.3, 1.0)) if mix else PaddedCrop(kind="padded", size=8)
    source = open_source(read_card("digits"), "train")
    maker = EntryMaker(source, drawing(crop), Law(8, 9, 0.5, mix), ENTRIES, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)).eval()
        network[1].weight.data.mul_(5)  # so that it says something
    with torch.inference_mode():
        rows = teach(maker.make(np.arange(len(source))), Teachers([network], [Input(8)]), TOPK, 512)
    columns = {name: values.numpy() for name, values in rows.items()}
    columns |= {"class": columns["class"].astype("<u2"), "prob": columns["prob"].astype("<f2")}
    about = {"crop": crop.model_dump(), "mix": mix, "num_classes": 10}
    return write_store(folder, source, KIND, columns, block=500, **about)
