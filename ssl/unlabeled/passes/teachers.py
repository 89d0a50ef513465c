"""Teachers: what several classifiers say of views, kept as their most probable classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlabeled.augment.photometric import to_input
from unlabeled.augment.replay.render import replay
from unlabeled.config.passes.reinforce import KIND
from unlabeled.data.batch import Batch
from unlabeled.methods.base import Input
from unlabeled.ops.precision import Resolved, autocast
from unlabeled.ops.targets.top_classes import mean_probability, sparsify


@dataclass(frozen=True)
class Teachers:
    """Networks that give logits, each on images with its own statistics; together the mean of their probabilities."""

    networks: Sequence[nn.Module]
    inputs: Sequence[Input]
    precision: Resolved = "fp32"

    def __call__(self, views: Tensor) -> Tensor:
        """Return probabilities [n, C] of views float32 [n, 3, S, S] in [0, 1]."""
        logits = []
        for network, image in zip(self.networks, self.inputs, strict=True):
            x = to_input(views, image.mean, image.std).contiguous(memory_format=torch.channels_last)
            with autocast(views.device, self.precision):
                logits.append(network(x))
        return mean_probability(logits)


def teach(batch: Batch, teachers: Callable[[Tensor], Tensor], topk: int, together: int) -> dict[str, Tensor]:
    """Return all fields of a batch of `EntryMaker`, [b, entries, ...]; teachers: see `together` views at once."""
    rows = batch.records[KIND]
    b, entries = batch.crops[0].shape[:2]
    crops = [crop.flatten(0, 1) for crop in batch.crops]
    flat = {name: values.flatten(0, 1) for name, values in rows.items()}
    prob, classes = [], []
    for first in range(0, b * entries, together):
        part = slice(first, first + together)
        views = replay([crop[part] for crop in crops], {name: values[part] for name, values in flat.items()})
        found = sparsify(teachers(views), topk)
        prob.append(found[0])
        classes.append(found[1])
    stored = {"class": torch.cat(classes), "prob": torch.cat(prob)}
    return {**rows, **{name: values.view(b, entries, topk) for name, values in stored.items()}}
