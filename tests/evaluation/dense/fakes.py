"""A trained-looking run without training: networks whose maps are colours of the image, and small rendered scenes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tests.evaluation.fakes import recipe
from torch import Tensor, nn

from unlabeled.config.card import Card
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.shapes import ShapesSource
from unlabeled.engine.maps import last_map
from unlabeled.engine.restore import Restored
from unlabeled.evaluation import evaluate as evaluate_module
from unlabeled.evaluation.dense import networks as dense_module
from unlabeled.evaluation.dense.networks import MaskedSplits, Network
from unlabeled.methods.base import Export, Input, Method


class Blocks(nn.Module):
    """Mean colours and squares in cells of `side` pixels, about zero: [b, 3, S, S] -> [b, 6, S / side, S / side]."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(side)
        self.scale = nn.Parameter(torch.ones(()))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the map."""
        return self.scale * torch.cat([self.pool(x - 0.5), self.pool(x**2) - 0.35], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return its mean."""
        return self.forward_features(x).mean((2, 3))


class Still(nn.Module):
    """The same everywhere, as after a collapse."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the map."""
        return torch.ones(len(x), 3, x.shape[2] // self.side, x.shape[3] // self.side)


class Clueless(Blocks):
    """As Blocks, and only the red channel counts."""

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the map."""
        return super().forward_features(x)[:, :1]


class FakeMethod(Method):
    """Exports the network, and one that gives no map."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def exports(self) -> dict[str, Export]:
        """Return both."""
        image = Input(self.size)
        return {
            "backbone": Export(lambda: copy.deepcopy(self.network), "vector", image),
            "classifier": Export(lambda: nn.Flatten(), "logits", image),
        }


@dataclass
class MapRuns:
    """Stands in for `load_run`."""

    run: Path
    network: nn.Module
    size: int = 32

    def __call__(self, path: Path, *, random_init: bool = False, device: Any = "cpu", out: Path | None = None,
                 ) -> Restored:
        network = Clueless(4) if random_init else self.network
        return Restored(recipe("shapes"), FakeMethod(network, self.size), 0 if random_init else 12, self.run)

    def write_card(self, path: Path, size: int = 32, **samples: int) -> None:
        """Write a card of rendered scenes with these splits."""
        splits = ", ".join(f"{name}: {{samples: {count}}}" for name, count in samples.items())
        path.write_text(f"name: scenes\nsource: {{kind: shapes, size: {size}, objects: [1, 5]}}\nsplits: {{{splits}}}\n"
                        f"image_size: {size}\nin_memory: true\n")


class Painted(Source):
    """n images of 12 x 12 pixels, the class of a pixel painted in its own colour; classes are not equally frequent."""

    mask_classes: ClassVar[list[str]] = ["black", "red", "green", "blue"]
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)

    def __init__(self, n: int, split: str = "train", bad: tuple[int, ...] = ()) -> None:
        super().__init__("painted", split)
        self.bad = bad
        drawn = np.random.default_rng([n, len(split)]).random((n, 12, 12))
        self.masks = np.digitize(drawn, [0.5, 0.7, 0.9]).astype(np.uint8)
        self.masks[:, 0, :3] = 255  # these are painted white

    def __len__(self) -> int:
        return len(self.masks)

    def key(self, index: int) -> str:
        """Return the number."""
        return f"{self.split}-{index}"

    def image(self, index: int) -> np.ndarray:
        """Return one image."""
        if index in self.bad:
            raise CorruptSample(self.key(index), "broken for the test")
        image = np.full((12, 12, 3), 255, np.uint8)
        known = self.masks[index] != 255
        image[known] = self.colours[self.masks[index][known]]
        return image

    def mask(self, index: int) -> np.ndarray:
        """Return its mask."""
        return self.masks[index]


def painted(network: nn.Module, train: int = 12, test: int = 5, bad: tuple[int, ...] = ()) -> tuple[Any, MaskedSplits]:
    """Return a network for images of 12 pixels, and splits of painted images; `bad` ones cannot be read."""
    card = Card.model_validate({"name": "painted", "source": {"kind": "folder"}, "splits": {"train": {}, "val": {}}})
    splits = MaskedSplits(card, Painted(train, bad=bad), Painted(test, "val", bad), Painted.mask_classes)
    export = Export(lambda: copy.deepcopy(network), "vector", Input(12))
    found, shape = last_map("backbone", export, torch.device("cpu"))
    return Network("backbone", found, shape, export.input), splits


def scenes(count: int, size: int) -> ShapesSource:
    """Return rendered scenes in a split `val`."""
    card = Card.model_validate({"name": "scenes", "source": {"kind": "shapes", "size": size, "objects": [1, 5]},
                                "splits": {"val": {"samples": count}}, "in_memory": True})
    source = open_source(card, "val")
    assert isinstance(source, ShapesSource)
    return source


def scene_runs(monkeypatch: pytest.MonkeyPatch, folder: Path, *, train: int, val: int) -> MapRuns:
    """Let every run that is loaded be a fake one, and the folder be the current one, with a card `scenes.yaml`."""
    fake = MapRuns(folder / "run", Blocks(4))
    for module in (evaluate_module, dense_module):
        monkeypatch.setattr(module, "load_run", fake)
    monkeypatch.chdir(folder)
    fake.write_card(Path("scenes.yaml"), train=train, val=val)
    return fake
