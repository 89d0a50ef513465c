"""SimCLR at two sizes: as the product does it, and the model alone on ready tensors."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import pictures
from unlabeled.config.read import read_recipe
from unlabeled.data.batch import Batch
from unlabeled.data.streams import open_streams
from unlabeled.engine import build, launch
from unlabeled.engine.method import build_method
from unlabeled.engine.plan import make_plan
from unlabeled.engine.updater import Updater
from unlabeled.methods.simclrv2 import normalize, nt_xent
from unlabeled.ops.distributed import world

# `lightly` draws and computes by torchvision's conventions, so both sides get these
RECIPE = """\
method:
  name: simclrv2
  temperature: 0.5
  head: {{layers: 2, out_dim: 128}}
  crop: {{kind: resized, size: {size}, area: [0.08, 1.0], interpolation: bilinear}}
  augment: {{convention: torchvision, jitter: {strength}, jitter_p: 0.8, gray_p: 0.2, blur_p: {blur}, normalize: true}}
backbone: {backbone}
data:
  workers: {workers}
  train: {{card: {card}, root: {root}, batch: {batch}}}
optim: {{name: sgd, lr: {{base: 0.06}}, momentum: 0.9, weight_decay: 5.0e-4}}
train: {{updates: 1000000, precision: {precision}, compile: {compile}}}
eval: {{every: 0}}
"""
IMAGES = {32: (32, 32), 224: (375, 500)}  # height and width as stored
STRENGTH, BLUR = {32: 0.5, 224: 1.0}, {32: 0.0, 224: 0.5}
BACKBONES = {
    32: "{name: resnet18, stem: cifar}",
    224: "{name: resnet50}",
    0: "{name: resnet18, width: 0.125, stem: cifar}",  # where only the data counts
}


@dataclass(frozen=True)
class Options:
    """One workload: size of the views, images per step, precision and where the images come from."""

    size: int
    batch: int
    precision: str = "fp32"
    compile: bool = False
    workers: int = 0
    card: str = ""  # a data card; empty: photographs made here
    root: str | None = None
    images: int = 512  # how many photographs to make
    tiny: bool = False  # a small network


class Product:
    """The product's own stream and update, built from a recipe as `unlabeled pretrain` builds them."""

    def __init__(self, options: Options, folder: Path) -> None:
        path = folder / "recipe.yaml"
        path.write_text(RECIPE.format(
            size=options.size, strength=STRENGTH[options.size], blur=BLUR[options.size],
            backbone=BACKBONES[0 if options.tiny else options.size], workers=options.workers,
            card=options.card or make_set(options, folder), root=options.root or "null", batch=options.batch,
            precision=options.precision, compile=str(options.compile).lower(),
        ))
        recipe = read_recipe(str(path))
        self.accelerator = launch.start(recipe.train)
        opened = open_streams(recipe)
        plan = make_plan(recipe, "train", len(opened["train"].source), world())
        method = build_method(recipe, build.make_info(recipe, opened))
        self.updater = Updater(method, recipe, plan, self.accelerator)
        self.source = opened["train"].source
        self.stream = build.train_streams(
            recipe, opened, plan, pin_memory=self.accelerator.device.type == "cuda")["train"]
        self._running: Iterator[list[Batch]] | None = None
        self._update = 0

    def next(self) -> list[dict[str, Batch]]:
        """Return the batch of the next update: crops uint8 from the stream."""
        if self._running is None:
            self._running = self.stream.updates(self._update, 1_000_000)
        return [{"train": batch} for batch in next(self._running)]

    def views(self) -> dict[str, Tensor]:
        """Return the finished views of the next batch, on the device."""
        self._update += 1
        return self.updater.views(self._update, 0, self.next()[0])

    def step(self) -> None:
        """Do the next update: crops, views, forward, backward, optimizer, check for NaN."""
        self.updater.update(self._update, self.next(), [0])
        self._update += 1

    def pause(self) -> None:
        """End the loader processes; the next batch starts them again."""
        self.stream.close()
        self._running = None

    def close(self) -> None:
        """Leave nothing behind for the next workload."""
        self.pause()
        gc.collect()


class Alone:
    """The same network, loss and optimizer on views that are already there: what no data path can beat."""

    def __init__(self, product: Product) -> None:
        method: Any = product.updater.method
        self.autocast = product.accelerator.autocast
        self.backbone, self.head = method.backbone, method.head
        self.optimizer = torch.optim.SGD(method.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
        self.ready = [product.views() for _ in range(2)]
        self.temperature = method.cfg.temperature
        self._turn = 0

    def step(self) -> None:
        """Forward, backward and optimizer on one of the ready batches."""
        views = self.ready[self._turn % len(self.ready)]
        self._turn += 1
        with self.autocast():
            hidden = self.head(self.backbone(torch.cat([views["view1"], views["view2"]])))
            first, second = (normalize(x) for x in hidden.chunk(2))
            loss = nt_xent(first, second, self.temperature).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def make_set(options: Options, folder: Path) -> Path:
    """Make photographs of the workload's size, small ones in memory and large ones as JPEG shards; return the card."""
    images = pictures.photographs(options.images, *IMAGES[options.size])
    return pictures.array_set(folder, images) if options.size == 32 else pictures.jpeg_set(folder, images)
