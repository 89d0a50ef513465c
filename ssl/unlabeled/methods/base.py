"""The contract between a method and the engine; the engine uses nothing else of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from unlabeled.augment.geometry import EvalCrop
from unlabeled.config.augment import Clip
from unlabeled.config.base.curve import CurveRule
from unlabeled.config.recipe import MethodConfig
from unlabeled.data.batch import Batch, Geometry, Stream
from unlabeled.data.clips import EvenClips, Spacing
from unlabeled.data.crops import ClipCrop
from unlabeled.errors import UserError
from unlabeled.ops.curves import value_at
from unlabeled.ops.distributed import Share, counts_per_part


class BackboneModule(nn.Module):
    """What a method may expect of a backbone, as timm's have it; forward: [b, 3, S, S] -> [b, num_features].

    input, gives: those of the export that it comes from (see `Export`); None for one with random weights. names: of the
    classes that a teacher knows, in the order of its logits; None if they are not known, and for all others.
    """

    num_features: int
    input: Input | None
    gives: str | None
    names: list[str] | None


class MakeBackbone(Protocol):
    """Makes the recipe's backbone, trainable, or the network that a source names, for a teacher.

    A source is RUN[:EXPORT[.BLOCK]], timm:NAME[@FILE] or torchvision:NAME[@FILE]. features: without its classifier;
    otherwise with it, where there is one and no export is named. options: of a public network's constructor, as
    `backbone.options`, under which name messages speak of them.
    """

    def __call__(self, source: str | None = None, *, features: bool = False, options: Mapping[str, Any] | None = None,
                 ) -> BackboneModule:
        """Return a new network. Raises UserError for a bad source."""


@dataclass(frozen=True)
class StreamInfo:
    """One stream of the run: samples in its split, images per update over all processes, labels [samples] or None.

    records: what the headers of its stores say of their rows, by name (`about` of `data.records.store.Header`).
    """

    samples: int
    batch: int
    labels: Tensor | None = None
    records: dict[str, dict[str, Any]] = field(default_factory=dict)


class Block(NamedTuple):
    """A contiguous part of the global batch: its number there, from 0, and its rows in the views of this process."""

    number: int
    rows: slice


@dataclass(frozen=True)
class Info:
    """What a method may know of the run when it is built; mean and std are those of the clock stream's card.

    classes, names: how many classes there are, and what they are called; None without labels. grad_accum: micro-batches
    per update. block_count: blocks of the global batch (`train.blocks`).
    """

    seed: int
    rank: int
    world: int
    classes: int | None
    streams: dict[str, StreamInfo]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    names: tuple[str, ...] | None = None
    grad_accum: int = 1
    block_count: int = 1

    def share(self, rows: int) -> Share:
        """Return this process's share of a global batch in which every process has `rows`.

        What is drawn for all of it from `step.shared`, and then cut to `mine`, is the same on any number of processes.
        """
        return Share(rows * self.world, slice(self.rank * rows, (self.rank + 1) * rows))

    def blocks(self, rows: int, micro: int) -> list[Block]:
        """Return the blocks of this process's micro-batch of `rows` images.

        What is done for each of them alone, with draws that are functions of (seed, update, number), is the same on any
        number of processes.
        """
        count = self.block_count // (self.world * self.grad_accum)
        first = (micro * self.world + self.rank) * count
        return [Block(first + i, slice(i * rows // count, (i + 1) * rows // count)) for i in range(count)]


@dataclass(frozen=True)
class Step:
    """The moment of training: `update` counts optimizer updates from 0 and is the same in views, forward, after_step.

    total: updates of the run. horizon: length of schedules. lr: learning rate of the update, before a group's factor.
    micro: micro-batch within the update. local, shared: CPU generators that depend on (seed, update, micro) with and
    without the rank. counts: in `forward` the method's counts, means over the micro-batches and processes of the update
    (see `Method.counts`).
    """

    update: int
    total: int
    horizon: int
    epoch: int
    epochs: int
    updates_per_epoch: int
    lr: float
    micro: int
    local: torch.Generator
    shared: torch.Generator
    counts: Mapping[str, Tensor] = field(default_factory=dict)

    def value(self, number: float | CurveRule, *, ahead: int = 0) -> float:
        """Return what an option that may be a curve is at this update, or so many updates ahead."""
        return value_at(number, self.update + ahead, self.horizon, self.updates_per_epoch)


@dataclass
class Losses:
    """Named terms whose sum is the loss; detached tensors for `after_step`; detached scalars for the log."""

    terms: dict[str, Tensor]
    carry: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Parameters that share their treatment; None means what the recipe's `optim` says.

    frozen: what holds them still in the first `frozen_epochs`: a learning rate of 0, or gradients that are dropped
    before the norm is taken and the gradient clipped, so that the optimizer has no moments of them yet.
    """

    names: tuple[str, ...]
    lr_mult: float = 1.0
    decay: float | None = None
    lars: bool | None = None
    part: str = "all"
    frozen_epochs: float = 0.0
    frozen: Literal["lr", "grad"] = "lr"


@dataclass(frozen=True)
class Input:
    """What a network expects: side of the square image in pixels, and mean and deviation (None: values in [0, 1]).

    clip: of a network for clips, how many frames they have and how those follow one another.
    """

    size: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    clip: Spacing | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of one sample: [3, size, size], of a clip [3, frames, size, size]."""
        return 3, *(() if self.clip is None else (self.clip.frames,)), self.size, self.size

def input_of(network: BackboneModule, size: int, info: Info | None, clip: Clip | None = None) -> Input:
    """Return images of `size` with the statistics that `network` was trained with, or else those of the data card.

    info: None where a method takes values in [0, 1] whatever the card says. clip: of a method that reads clips.
    """
    own = Input(size) if info is None else Input(size, info.mean, info.std)
    known = network.input or own
    return Input(size, known.mean, known.std, None if clip is None else Spacing.of(clip))


def width_of(network: BackboneModule) -> int:
    """Return the width of the vectors that `network` gives. Raises UserError if it gives none."""
    if network.gives not in (None, "vector"):
        raise UserError(f"backbone.init gives {network.gives} and no vectors; name another export, as in RUN:backbone")
    return network.num_features


@dataclass(frozen=True)
class Export:
    """A network to evaluate and to hand to users; `build` returns a standalone copy in evaluation mode.

    names: of the classes of logits, in their order, where it comes from elsewhere and they are known.
    """

    build: Callable[[], nn.Module]
    gives: Literal["vector", "map", "tokens", "logits"]
    input: Input
    names: list[str] | None = None

    @property
    def crop(self) -> Geometry:
        """Return how a sample comes to the network: the centre of an image, or of the frames in a video's middle."""
        image, clip = EvalCrop(self.input.size), self.input.clip
        if clip is None:
            return image
        return ClipCrop(image, EvenClips(clip.frames, clip.stride, per_second=clip.per_second))


class Method(nn.Module):
    """Base of all methods (see docs/methods.md for the whole contract)."""

    Config: ClassVar[type[MethodConfig]]
    clock: ClassVar[str] = "train"
    couples_batch: bool = False
    taught_names: list[str] | None = None  # of the classes that its teacher knows; the engine sets it

    @classmethod
    def streams(cls, cfg: MethodConfig) -> dict[str, Stream]:
        """Return the streams that the method reads, by name."""
        raise NotImplementedError

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        """Make what the network sees from the crops: on the device, without gradient."""
        raise NotImplementedError

    def counts(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what losses and metrics of these views divide by, if that may differ between micro-batches, 0-d."""
        return {}

    def mean_counts(self, views: dict[str, Tensor], step: Step) -> Mapping[str, Tensor]:
        """Return `step.counts`, by which `forward` divides its sums; where there are none, `views` are all there is."""
        return step.counts or counts_per_part([self.counts(views)])

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        """Return the losses; changes nothing but BatchNorm statistics."""
        raise NotImplementedError

    def after_step(self, step: Step, carry: dict[str, Tensor]) -> dict[str, float]:
        """Update queues, centres and EMA copies once per optimizer update; return scalars for the log."""
        return {}

    def param_groups(self) -> list[Group]:
        """Put every trainable parameter into exactly one group."""
        return [Group(tuple(name for name, p in self.named_parameters() if p.requires_grad))]

    def exports(self) -> dict[str, Export]:
        """Return what is evaluated during training and handed to users; the first is the default."""
        raise NotImplementedError


class Choosing(Protocol):
    """What a method offers besides whose options say `chooses`: classifiers of which a protocol chooses one."""

    @property
    def choices(self) -> list[tuple[str, float]]:
        """Return the form of the features and the learning rate of every classifier."""

    def verdicts(self) -> Export:
        """Return what all of them take an image for in one pass: [b, 3, S, S] -> classes float32 [b, K]."""

    def classifier(self, choice: tuple[str, float]) -> Export:
        """Return one of them, which gives logits."""
