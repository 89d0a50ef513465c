"""The one loop over samples with a network: batches made ahead, on the device, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing

import numpy as np
import torch

from unlabeled.data.batch import Batch
from unlabeled.data.loader import batches
from unlabeled.data.sources.base import Source
from unlabeled.data.workers import Maker
from unlabeled.ops.precision import full_precision


@torch.inference_mode()
def walk(maker: Maker, units: Iterable[np.ndarray], take: Callable[[Batch, np.ndarray], None], *, source: Source,
         workers: int, device: torch.device) -> None:
    """Let `take` have the batch of every unit, on the device, and its places, int64 [b], in order.

    maker: makes the batch of a unit, int64 places, in `workers` processes; here if the images of `source` live in
    memory. Networks run in full precision unless `take` says otherwise.
    """
    workers = workers if source.images is None else 0
    made = batches(maker, units, workers, pin_memory=device.type == "cuda")
    with full_precision(device), closing(made) as ready:
        for batch in ready:
            take(batch.to(device), batch.index.numpy())
