"""A trained-looking run without training: digits, and a network of one fixed random projection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from unlabeled.config.recipe import MethodConfig, Recipe
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.engine.restore import Restored
from unlabeled.methods.base import Export, Input, Method


class Projection(nn.Module):
    """[b, 3, S, S] -> [b, width]: a random projection of grey pixels; `mix` below 1 blurs what it can tell apart."""

    def __init__(self, size: int, width: int, rank: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(rank)
        left = torch.randn(size * size, rank, generator=generator)
        self.register_buffer("weight", left @ torch.randn(rank, width, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1).flatten(1) @ self.weight


class FakeMethod(Method):
    """Exports a good projection and a poor one."""

    def __init__(self, rank: int, size: int = 8) -> None:
        super().__init__()
        self.rank, self.size = rank, size

    def exports(self) -> dict[str, Export]:
        image = Input(self.size)
        return {
            "backbone": Export(lambda: Projection(self.size, 48, self.rank), "vector", image),
            "poor": Export(lambda: Projection(self.size, 48, 2), "vector", image),
            "dense": Export(nn.Identity, "map", image),
        }


def recipe(card: str, split: str = "train") -> Recipe:
    return Recipe(
        method=MethodConfig(name="fake"), backbone={"name": "resnet18"},
        data={"train": {"card": card, "split": split, "batch": 32}},
        optim={"name": "sgd", "lr": {"base": 0.1}}, train={"updates": 12, "seed": 3},
    )


@dataclass
class FakeRuns:
    """Stands in for `load_run`; counts how often networks are loaded."""

    card: str
    run: Path
    size: int = 8
    split: str = "train"
    loads: int = 0

    def __call__(self, path: Path, *, random_init: bool = False, device: Any = "cpu", out: Path | None = None,
                 ) -> Restored:
        self.loads += 1
        method = FakeMethod(3 if random_init else 32, self.size)
        return Restored(recipe(self.card, self.split), method, 0 if random_init else 12, self.run)


class Noise(Source):
    """n images of 8 x 8 pixels read one by one; those in `broken` cannot be read."""

    def __init__(self, n: int, broken: tuple[int, ...] = (), classes: int = 2) -> None:
        super().__init__("noise", "all")
        self.pixels = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), np.uint8)
        self.broken = broken
        self.labels = np.arange(n) % classes
        self.classes = [str(i) for i in range(classes)]

    def __len__(self) -> int:
        return len(self.pixels)

    def key(self, index: int) -> str:
        return f"noise-{index}"

    def image(self, index: int) -> np.ndarray:
        if index in self.broken:
            raise CorruptSample(self.key(index), "broken for the test")
        return self.pixels[index]
