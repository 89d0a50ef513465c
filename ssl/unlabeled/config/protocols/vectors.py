"""The typed evaluation protocols of eval/*.yaml. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from unlabeled.config.base.optim import Optim
from unlabeled.config.marks import Free, Scoring
from unlabeled.config.recipe import MethodConfig, Precision, Strict, Subset
from unlabeled.errors import UserError

Positive = Annotated[int, Field(gt=0)]


class ClipViews(Strict):
    """How videos come to a network for clips; the features of all views are averaged, of a classifier probabilities."""

    frames: int | None = Field(
        None, gt=0, description="null: as in training; 1: the middle frame alone, as an image"
    )
    stride: int | None = Field(
        None, gt=0, description="frames of the video from one frame of the clip to the next; null: as in training"
    )
    count: Scoring[int] = Field(
        1, gt=0, description="clips of a video, evenly spread over it; a single one is in its middle"
    )
    crops: Scoring[Literal[1, 3]] = Field(
        1, description="squares of each clip: 1, the centre, as of images; 3, as wide as the shorter side, at both "
        "ends and in the middle of the longer one"
    )

    @model_validator(mode="after")
    def _single(self) -> ClipViews:
        if self.frames == 1:
            for key in ("stride", "count", "crops"):
                if getattr(self, key) not in (None, 1):
                    raise ValueError(f"'{key}' has no effect with frames: 1, which is an image")
        return self


class Protocol(Strict):
    """What all protocols share; those on frozen features use everything of it."""

    needs: ClassVar[str | None] = None  # of its card: masks or boxes (see `Card.has`)
    idle: ClassVar[Mapping[str, str]] = {}  # what all protocols share and this one does not use, and why
    learns: ClassVar[bool] = True  # from the images of the split `train`
    measure: ClassVar[str] = "accuracy"  # what its numbers are, in percent
    protocol: str
    export: str | None = Field(
        None,
        description="which of the method's exports; null: its default, the first. EXPORT.BLOCK, such as "
        "backbone.layer3, is the output of a module inside it, averaged over its places",
    )
    inflate: Literal["r3d50", "r3d101", "r3d152"] | None = Field(
        None, description="network for clips that takes the weights of the export, a 2D ResNet of its depth, each "
        "kernel spread evenly over its frames (arXiv 1705.07750); null: the export as it is"
    )
    card: str | None = Field(None, description="data card to evaluate on; null: the one that the run was trained on")
    root: Free[str | None] = Field(None, description="folder of the data; overrides the card's own")
    train: str | None = Field(None, description="split that gives the labels; null: train, else the run's own split")
    test: Scoring[str | None] = Field(None, description="split that is scored; null: test, else val")
    size: int | None = Field(
        None, gt=0, description="side of the images, pixels; null: as in training (more may pay, arXiv 1906.06423)"
    )
    clip: ClipViews = Field(ClipViews(), description="of networks for clips")
    batch: Free[int] = Field(
        256, gt=0, description="images, or frames of clips, per forward pass and process; the result does not depend "
        "on it"
    )
    workers: Free[int] = Field(4, ge=0, description="loader processes per process; 0 reads in the process itself")
    precision: Precision = Field(
        "auto", description="of the network, as in training: auto is bf16 on GPUs and on CPUs with AMX, else fp32, the "
        "reference. What is computed on its features is float32 or more"
    )
    keep_features: Free[bool] = Field(
        True, description="keep features in the user's cache folder, and use those that are there"
    )
    max_corrupt: Free[float] = Field(0.001, ge=0, le=1, description="share of unreadable images above which it stops")
    random_init: Free[bool] = Field(True, description="score the same network, untrained, beside it")
    raw_pixels: Free[bool] = Field(True, description="score the pixels themselves, at most 32 x 32, beside it")
    seed: int = Field(0, ge=0, description="of everything that the protocol draws")

    def check(self, counts: Sequence[int], names: Sequence[str]) -> None:
        """Raise UserError if the labelled training images, `counts` per class `names`, are too few."""


class Nearest(Protocol):
    """What protocols share that look at the nearest training images, by cosine; a test image is none of its own."""

    idle: ClassVar[Mapping[str, str]] = {"seed": "it draws nothing"}
    k: list[Positive] = Field(min_length=1)
    search: Literal["torch", "faiss"] = Field("torch", description="both are exact and give the same answer")

    def check(self, counts: Sequence[int], names: Sequence[str]) -> None:
        """Raise UserError if a k exceeds the labelled training images."""
        n = sum(counts)
        if n < 1:
            raise UserError(f"{self.protocol} needs a labelled training image besides the test image itself; there is "
                            "none")
        if max(self.k) > n:
            fitting = [k for k in self.k if k <= n] or [max(1, n // 10)]
            raise UserError(f"k is {max(self.k)}, but there are {n} labelled training images; use k={fitting}")


class Knn(Nearest):
    """Vote of the k nearest training images by cosine, weighted by exp(cosine / temperature)."""

    protocol: Literal["knn"]
    k: list[Positive] = Field([20, 200], min_length=1)
    temperature: float = Field(0.07, gt=0)


class Retrieval(Nearest):
    """Recall at k: the share of test images one of whose k nearest training images, by cosine, has their class."""

    measure = "recall"
    protocol: Literal["retrieval"]
    k: list[Positive] = Field([1, 5, 10], min_length=1)


class Linear(Protocol):
    """Linear classifier on cached, standardised features: SGD over a grid of settings at once, chosen on held-out."""

    protocol: Literal["linear"]
    lr: list[Annotated[float, Field(gt=0)]] = Field([0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0], min_length=1)
    weight_decay: list[Annotated[float, Field(ge=0)]] = Field([0.0, 1e-4, 1e-3], min_length=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    images_per_update: int = Field(1024, gt=0, description="at most the whole training set")
    epochs: int = Field(10, gt=0)
    min_updates: int = Field(500, gt=0, description="small sets get as many epochs as this takes")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of every training class that chooses the setting")

    def check(self, counts: Sequence[int], names: Sequence[str]) -> None:
        """Raise UserError if no class can spare a held-out image."""
        if max(counts, default=0) < 2:
            raise UserError("the linear probe chooses its setting on held-out training images, but no class has two")


class FewLabels(Protocol):
    """Logistic regression on standardised features with k labels per class, over fixed draws of the labels."""

    protocol: Literal["few-labels"]
    labels_per_class: list[Positive] = Field([1, 4], min_length=1)
    draws: int = Field(20, gt=1)
    c: float = Field(1.0, gt=0, description="inverse regularisation, as in scikit-learn: loss sum + |W|^2 / (2 c)")

    def check(self, counts: Sequence[int], names: Sequence[str]) -> None:
        """Raise UserError if a class has too few labels."""
        short = [i for i, count in enumerate(counts) if count < max(self.labels_per_class)]
        if short:
            raise UserError(f"{max(self.labels_per_class)} labels per class are asked, but class '{names[short[0]]}' "
                            f"has {counts[short[0]]} labelled training images; lower labels_per_class")


class Logistic(Protocol):
    """Logistic regression on standardised features of all labelled images, C chosen on held-out images."""

    protocol: Literal["logistic"]
    c: list[Annotated[float, Field(gt=0)]] = Field(
        [1e-4, 1e-3, 1e-2, 0.1, 1.0], min_length=1, description="inverse regularisation, as in scikit-learn"
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="share of every training class that chooses c")

    def check(self, counts: Sequence[int], names: Sequence[str]) -> None:
        """Raise UserError if no class can spare a held-out image."""
        if max(counts, default=0) < 2:
            raise UserError("logistic regression chooses c on held-out training images, but no class has two")


class Clustering(Protocol):
    """k-means of the test features on the unit sphere, and how far its clusters are the classes."""

    learns = False
    measure = "agreement with the classes"
    idle: ClassVar[Mapping[str, str]] = {"train": "nothing is learnt; 'test' is the split that is clustered"}
    protocol: Literal["clustering"]
    clusters: Annotated[int, Field(gt=1)] | None = Field(None, description="null: as many as there are classes")
    restarts: Positive = Field(10, description="of k-means, each from centres of its own; the tightest result counts")


class Classify(Protocol):
    """Accuracy of the classifiers that the method itself trained, on the test split."""

    learns = False
    idle: ClassVar[Mapping[str, str]] = {"seed": "it draws nothing", "keep_features": "it keeps none"}
    protocol: Literal["classify"]
    real: str | None = Field(
        None, description="ReaL's labels of ImageNet's validation images, real.json: right is who names one of them"
    )
    inflate: Literal[None] = None
    random_init: Literal[False] = False
    raw_pixels: Literal[False] = False


class TrainedData(Strict):
    """The training images of a trained protocol."""

    batch: int = Field(gt=0, description="images per update, over all processes")
    subset: Subset | None = Field(None, description="use only a part of the labelled images")
    epoch_samples: int | None = Field(
        None, gt=0, description="samples of one epoch, where not the whole set; more than it holds repeats it"
    )


class Trained(Protocol):
    """A method that is trained on top of the run by the same engine, then scored: probes by SGD, fine-tuning."""

    idle: ClassVar[Mapping[str, str]] = {
        "batch": "its images per update are 'data.batch'", "keep_features": "it keeps none",
    }
    protocol: Literal["trained"]
    method: Annotated[Any, Field(description="the method's name and its options")]
    data: TrainedData
    optim: Optim
    epochs: int = Field(gt=0)
    held_out: float | None = Field(
        None, gt=0, lt=1, description="share of every training class that is not learnt and chooses among the "
        "classifiers of a method that trains many"
    )
    precision: Precision = Field("auto", description="of training and scoring: auto is bf16 on GPUs and on CPUs with "
                                 "AMX, else fp32")
    sync_bn: bool = Field(True, description="BatchNorm statistics over all processes")
    checkpoint_every: Free[int | None] = Field(
        None, gt=0, description="updates between checkpoints; null: by time, so often that saving takes 2 % of it"
    )
    allow_changed_data: Free[bool] = Field(
        False, description="go on although the data is not what the training began with"
    )
    raw_pixels: Literal[False] = False

    def misfit(self, method: MethodConfig) -> str | None:
        """Return what is wrong with `held_out` for the method whose options are given, None if nothing is."""
        if self.held_out is None:
            return (f"missing key 'held_out': of the classifiers of method '{method.name}' one is chosen by held-out "
                    "training images, such as held_out=0.05" if method.chooses else None)
        if not method.chooses:
            return f"'held_out' has no effect with method '{method.name}', all of whose classifiers are scored"
        return "give either 'held_out' or 'data.subset': each says what is learnt" if self.data.subset else None

    def check(self, counts: Sequence[int], names: Sequence[str]) -> None:
        """Raise UserError if a class cannot spare a held-out image."""
        short = [name for count, name in zip(counts, names, strict=True) if count < 2]
        if self.held_out is not None and short:
            raise UserError("the classifier is chosen on held-out training images of every class, but class "
                            f"'{short[0]}' has fewer than two labelled ones; use the protocol linear-sgd")
