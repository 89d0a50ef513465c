"""Options of SimCLRv2 pretraining; the defaults are the paper's (arXiv 2006.10029)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from unlabeled.config.augment import Crop, ResizedCrop
from unlabeled.config.base.curve import Momentum, Temperature
from unlabeled.config.recipe import MethodConfig, Smallest, Strict


class Head(Strict):
    """The projection head."""

    layers: int = Field(3, ge=1)
    out_dim: int = Field(128, gt=0)
    init_std: float = Field(0.01, gt=0, description="deviation of the initial linear weights")


class Memory(Strict):
    """The momentum memory of the paper: a queue of keys from an EMA copy of the network."""

    size: int = Field(65536, gt=0, description="keys in the queue; two per image")
    decay: Momentum = Field(0.999, description="EMA decay per update, or a curve of it")


class Augment(Strict):
    """Photometric changes of one view, in this order."""

    convention: Literal["simclr", "torchvision"] = Field(
        "simclr", description="simclr: contrast per channel, saturation in HSV, zero-padded blur"
    )
    jitter: float = Field(1.0, ge=0, description="strength s: 0.8 s for three factors, 0.2 s for hue; 0: no gray")
    jitter_p: float = Field(0.8, ge=0, le=1)
    gray_p: float = Field(0.2, ge=0, le=1)
    blur_p: float = Field(0.5, ge=0, le=1)
    blur_sigma: tuple[float, float] = Field((0.1, 2.0), description="pixels; one draw per view and update")
    normalize: bool = Field(False, description="subtract the card's mean and divide by its deviation; off in the paper")


class SimCLRv2Config(MethodConfig):
    """`method: {name: simclrv2, ...}`."""

    streams: ClassVar[tuple[str, ...]] = ("train",)
    needs: ClassVar[frozenset[str]] = frozenset()

    name: Literal["simclrv2"] = "simclrv2"
    temperature: Temperature = Field(0.1, description="a number, or a curve over the run")
    head: Head = Head()
    memory: Memory | None = None
    online_probe: bool = Field(False, description="train a linear classifier on detached features (needs labels)")
    crop: Crop = ResizedCrop()
    augment: Augment = Augment()

    def smallest_batch(self, stream: str) -> Smallest:
        """Return two; with a memory too, for the head's last BatchNorm makes two views that are alone opposite."""
        why = "an image is told from the others of its batch, and one has none"
        if self.memory is not None:
            why = "BatchNorm makes the head's vectors of an image's two views opposite where no others are beside them"
        return Smallest(2, why, alone=True)
