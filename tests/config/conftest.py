"""A small method of the tests' own, and a correct recipe for it."""

from typing import ClassVar

import pytest
from pydantic import Field

from unlabeled.config import tables
from unlabeled.config.augment import Crop, ResizedCrop
from unlabeled.config.recipe import MethodConfig


class Tiny(MethodConfig):
    """Options of the method `tiny`."""

    needs: ClassVar[frozenset[str]] = frozenset({"map"})

    temperature: float = Field(0.1, gt=0)
    crop: Crop = ResizedCrop(size=32)
    sizes: list[int] = Field([1], min_length=1)
    either: int | str = 1


RECIPE = """\
# Tiny on digits.
method:
  name: tiny
  temperature: 0.2
backbone: {name: resnet18, stem: cifar}
data:
  workers: 0
  train:
    card: digits
    batch: 64
optim:
  name: lars
  lr: {base: 0.3, per: 256, scaling: linear}
  weight_decay: 1e-6
train:
  epochs: 10
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Return a function that writes the recipe, with pieces of text replaced, and gives its path."""
    monkeypatch.setitem(tables.METHODS, "tiny", (f"{__name__}:Tiny", "nowhere:Tiny"))
    monkeypatch.chdir(tmp_path)

    def write(*changes, name="r.yaml"):
        text = RECIPE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / name).write_text(text)
        return name

    return write
