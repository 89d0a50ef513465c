"""The same work through the `lightly` package: its transform, loss and projection head, in the loop of its example.

What it reads is the kindest there is: arrays that lie in memory, or JPEG bytes that cost one read each.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.workload import BLUR, STRENGTH, Options, Product
from unlabeled.data.sources.base import Source
from unlabeled.errors import UserError


def installed() -> None:
    """Raise UserError if the package is missing."""
    try:
        import lightly  # noqa: F401
    except ImportError:
        raise UserError("--peer lightly: the package is not installed: pip install lightly") from None


class Images(Dataset[Any]):
    """The images of one of the product's sources as PIL images, transformed."""

    def __init__(self, source: Source, transform: Any) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        if self.source.images is not None:
            image = Image.fromarray(self.source.images[index])
        else:
            image = Image.open(io.BytesIO(self.source.raw(index) or b"")).convert("RGB")
        return self.transform(image)


class Lightly:
    """SimCLR as in the package's PyTorch example: float32, standard memory layout, one forward per view."""

    def __init__(self, product: Product, options: Options) -> None:
        installed()
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.transforms import SimCLRTransform

        transform = SimCLRTransform(options.size, cj_strength=STRENGTH[options.size],
                                    gaussian_blur=BLUR[options.size])
        self.loader: DataLoader[Any] = DataLoader(
            Images(product.source, transform), batch_size=options.batch, shuffle=True, drop_last=True,
            num_workers=options.workers)
        self.device = product.accelerator.device
        method: Any = product.updater.method
        self.backbone = copy.deepcopy(method.backbone).to(memory_format=torch.contiguous_format)
        width = self.backbone.num_features
        self.head = SimCLRProjectionHead(width, width, 128).to(self.device)
        self.loss = NTXentLoss()
        parameters = [*self.backbone.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=0.06)
        self._running: Iterator[Any] = iter(())

    def views(self) -> list[Tensor]:
        """Return the two finished views of the next batch, on the device."""
        batch = next(self._running, None)
        if batch is None:
            self._running = iter(self.loader)
            batch = next(self._running)
        return [view.to(self.device) for view in batch]

    def step(self) -> None:
        """Do one update of the example's loop."""
        first, second = (self.head(self.backbone(view).flatten(1)) for view in self.views())
        loss = self.loss(first, second)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def pause(self) -> None:
        """End the loader processes."""
        self._running = iter(())
