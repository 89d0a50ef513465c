"""Options of probes: classifiers on frozen features, trained with augmentation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from unlabeled.config.augment import ClipOrImage, Crop, ResizedCrop
from unlabeled.config.recipe import MethodConfig, Smallest, Strict


class LinearHead(Strict):
    """A linear classifier; on a map after pooling it to a grid and flattening."""

    kind: Literal["linear"] = "linear"
    block: str | None = Field(None, description="module of the network that gives the features; null: its output")
    pool: int | None = Field(None, gt=0, description="side of the grid that a map is pooled to; null: 1, its mean")
    pool_type: Literal["max", "avg"] = "max"
    norm: bool = Field(False, description="BatchNorm without scale and shift before the classifier")
    normalize: bool = Field(False, description="scale the features of every image to length 1 before the classifier")

    @model_validator(mode="after")
    def _one_scale(self) -> LinearHead:
        if self.norm and self.normalize:
            raise ValueError("give either norm or normalize: each sets the scale of the features")
        return self


class MlpHead(Strict):
    """Two hidden layers with BatchNorm; a convolution and a max-pool may come before them."""

    kind: Literal["mlp"]
    block: str | None = Field(None, description="module of the network that gives the features; null: its output")
    width: int | None = Field(None, gt=0, description="of the hidden layers; null: 20 per class, at most 2048")
    conv: int | None = Field(None, gt=0, description="first a 3x3 convolution with so many filters, BatchNorm, ReLU")
    max_pool: bool = Field(False, description="then a 3x3 stride-2 max-pool")


class ConvHead(Strict):
    """RotNet's convolutional classifier: a block of a Network in Network, global average pool, linear."""

    kind: Literal["conv"]
    block: str | None = Field(None, description="module of the network that gives the map; null: its output")


def kind(value: Any) -> Any:
    """Return the kind of a head; `linear` where none is given."""
    return value.get("kind", "linear") if isinstance(value, dict) else getattr(value, "kind", None)


Head = Annotated[
    Annotated[LinearHead, Tag("linear")] | Annotated[MlpHead, Tag("mlp")] | Annotated[ConvHead, Tag("conv")],
    Discriminator(kind),
]


class ProbeConfig(MethodConfig):
    """`method: {name: probe, ...}`; the heads are trained together, on the sum of their losses."""

    streams: ClassVar[tuple[str, ...]] = ("train",)
    needs: ClassVar[frozenset[str]] = frozenset()

    name: Literal["probe"] = "probe"
    heads: dict[str, Head] = Field({"linear": LinearHead()}, min_length=1, description="name -> classifier")
    crop: Crop = ResizedCrop()
    clip: ClipOrImage = None

    def smallest_batch(self, stream: str) -> Smallest | None:
        """Return two where a head has BatchNorm on vectors."""
        normed = [name for name, head in self.heads.items() if isinstance(head, MlpHead)
                  or (isinstance(head, LinearHead) and head.norm and head.pool in (None, 1))]
        if not normed:
            return None
        return Smallest(2, f"BatchNorm of head '{normed[0]}' has no deviation of a single vector", alone=True)
