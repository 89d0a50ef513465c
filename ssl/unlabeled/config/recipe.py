"""The typed recipe: what a pretraining run is made of.

Fields carry their units in the name or description. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from unlabeled.config.base.objects import is_dotted
from unlabeled.config.base.optim import Optim
from unlabeled.config.base.strict import Strict
from unlabeled.config.marks import Free
from unlabeled.config.sources import public, sized
from unlabeled.config.tables import BACKBONE_OPTIONS, NOT_TIMMS


class Smallest(NamedTuple):
    """The fewest images of an update from which a method can learn, and why; alone: that many where BatchNorm looks.

    Where BatchNorm is not synchronised, it looks at the images of one process.
    """

    images: int
    why: str
    alone: bool = False


class MethodConfig(Strict):
    """Base of every `method:` block; subclasses add the fields of their paper, with its defaults.

    streams: names of the data streams that the method reads. needs: what the backbone must offer (see `tables`).
    chooses: it trains many classifiers, one of which a protocol chooses by images that were held out.
    """

    streams: ClassVar[tuple[str, ...]] = ("train",)
    needs: ClassVar[frozenset[str]] = frozenset()
    chooses: ClassVar[bool] = False

    name: str

    def smallest_batch(self, stream: str) -> Smallest | None:
        """Return the fewest images of a stream that an update needs; None where one is enough."""
        return None

    def starts(self) -> dict[str, float]:
        """Return what begins later than the run: its key in the recipe -> epochs."""
        return {}

    def works_by_blocks(self) -> bool:
        """Return whether anything is done for each block of the global batch apart (`train.blocks`)."""
        return False


class Backbone(Strict):
    """The network that is trained and exported."""

    name: str = Field(description="a name of the backbone table, any timm model, torchvision:NAME, or module:object of "
                      "one's own; with init that network's, if not given")
    init: str | None = Field(
        None, description="start from the network of an earlier run, RUN or RUN:EXPORT, such as runs/x:backbone+head1, "
        "from a size of an elastic one, such as runs/x:384x12, or from public weights: timm:NAME, "
        "timm:NAME@FILE, torchvision:NAME or torchvision:NAME@FILE"
    )
    init_weights: bool = Field(True, description="false: that network at random initialisation, as a baseline")
    width: float = Field(1, gt=0, description="factor on every channel count (ResNets and R3Ds only)")
    stem: Literal["imagenet", "cifar"] = Field("imagenet", description="cifar: 3x3 stride-1 convolution, no max-pool")
    sk_ratio: float = Field(
        0, ge=0, le=1, description="SimCLRv2's selective kernels: width of their gate by filters; 0: none"
    )
    project_first: bool = Field(
        False, description="1x1 convolution in the first shortcut of layer1 too (SimCLR's ResNet-18 and 34)"
    )
    blocks: Literal[3, 4, 5] = Field(4, description="convolution blocks of RotNet's NIN")
    avg_after_block3: bool = Field(False, description="average pool after the NIN's third block, if more follow")
    size: str | None = Field(
        None, description="WIDTHxDEPTH, such as 384x12: of an elastic network the plain one of that size, which "
        "init: RUN:WIDTHxDEPTH says by itself"
    )
    options: dict[str, Any] = Field(
        {}, description="options of timm's constructor, such as {img_size: 32, drop_path_rate: 0.1}, or of one's own"
    )
    grad_checkpointing: bool = Field(False, description="recompute activations in the backward pass to save memory")

    @model_validator(mode="after")
    def _options_belong_to_the_network(self) -> Backbone:
        if self.init is None and not self.init_weights:
            raise ValueError("'init_weights' has no effect without init")
        for key, names in BACKBONE_OPTIONS.items():
            own = key == "size" and is_dotted(self.name)  # which may be elastic
            if not own and self.name not in names and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"'{key}' has no effect with {self.name}; it belongs to {', '.join(names)}")
        if self.size is not None and sized(self.size) != (None, self.size, None):
            raise ValueError(f"'size' needs WIDTHxDEPTH, such as 384x12, given '{self.size}'")
        if self.avg_after_block3 and self.blocks == 3:
            raise ValueError("'avg_after_block3' has no effect with 3 blocks; use 4 or 5, or leave it false")
        return self

    @model_validator(mode="after")
    def _weights_come_with_init(self) -> Backbone:
        named = public(self.name)
        if named is not None and self.name != named.backbone:
            raise ValueError(f"'name' is {self.name}; write name: {named.backbone} for random weights, or init: "
                             f"{self.name} for published ones")
        return self

    @model_validator(mode="after")
    def _options_are_timms(self) -> Backbone:
        if is_dotted(self.name):
            return self
        if self.options and (self.name in NOT_TIMMS or self.sk_ratio):
            which = f"{self.name} with sk_ratio" if self.sk_ratio else self.name
            raise ValueError(f"'options' has no effect with {which}: its class is not timm's")
        own = [*RESERVED_OPTIONS]
        if self.name in BACKBONE_OPTIONS["stem"]:
            own += ["block", "layers", *(_OF_THE_STEM if self.width != 1 or self.stem == "cifar" else ())]
        for key, value in self.options.items():
            if key in own:
                raise ValueError(f"'options.{key}' is set by the package itself for {self.name}; leave it out")
            if value is None:
                raise ValueError(f"'options.{key}' is nothing, which timm leaves out for {self.name}; leave it out too")
            if "drop" in key and key.endswith("rate") and not (type(value) in (int, float) and 0 <= value < 1):
                raise ValueError(f"'options.{key}' of {self.name} needs a number from 0 to below 1, given {value!r}")
            if key == "img_size" and not (type(value) is int and value > 0):
                raise ValueError(f"'options.img_size' of {self.name} needs a whole number of pixels above 0 (crops are "
                                 f"square), given {value!r}")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_options_of_other_networks(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        left_out = {key for key, names in BACKBONE_OPTIONS.items() if self.name not in names}
        left_out |= {"options"} if self.name in NOT_TIMMS else set()
        return {key: value for key, value in dump(self).items() if key not in left_out}


# options of timm's constructors that are not the user's
RESERVED_OPTIONS = (
    "num_classes", "in_chans", "features_only", "out_indices", "feature_cls", "pretrained",
    "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "pretrained_strict", "pretrained_filter_fn",
    "checkpoint_path", "cache_dir", "kwargs_filter", "model_name", "name", "scriptable", "exportable", "no_jit",
    "device", "dtype",
)  # fmt: skip
_OF_THE_STEM = ("channels", "stem_type", "stem_width", "replace_stem_pool")


class Subset(Strict):
    """A part of a split: k images of every class, a share of every class, or a published list."""

    per_class: int | None = Field(None, gt=0, description="labelled images of every class")
    share: float | None = Field(None, gt=0, le=1, description="instead: this share of every class, at least one image")
    list: str | None = Field(None, description="instead: a list of images that the data card names, such as 1percent")
    order: Literal["random", "first"] = Field("random", description="first: the first ones in the order of the split")
    seed: int = Field(0, ge=0, description="of the random choice; a smaller choice lies inside a larger one")
    complement: bool = Field(False, description="all other images instead, such as those that are left unlabelled")

    @model_validator(mode="after")
    def _one_rule(self) -> Subset:
        if sum(rule is not None for rule in (self.per_class, self.share, self.list)) != 1:
            raise ValueError("give one of per_class, share and list")
        return self


class SetData(Strict):
    """A split of a data card, or a part of one."""

    card: str = Field(description="name of a data card, or the path of one")
    root: Free[str | None] = Field(None, description="folder of the data; overrides the card's own")
    split: str = "train"
    subset: Subset | None = Field(None, description="use only a part of the split")
    records: Free[dict[str, str]] = Field(
        {}, description="folders of what is stored per image, by kind: {labelmap: FOLDER}; besides those of the card"
    )


class MixedSet(SetData):
    """One of several sets that a stream reads together."""

    weight: float | None = Field(
        None, gt=0, description="share of the samples, in proportion to the other weights; none: every sample once"
    )
    labels: bool = Field(True, description="false: its labels count as unknown, such as those of other classes")


class StreamData(SetData):
    """Where one stream of training samples comes from: a split of one card, or several of them."""

    card: str = Field("", description="name of a data card, or the path of one")
    mix: Free[list[MixedSet]] = Field(
        [], description="instead of card: several sets as one; labels of those without are unknown"
    )
    batch: int = Field(gt=0, description="images per update, over all processes")
    epoch_samples: int | None = Field(
        None, gt=0, description="samples of one epoch, where not the whole set; more than it holds repeats it"
    )

    @model_validator(mode="after")
    def _one_card_or_several(self) -> StreamData:
        if bool(self.card) == bool(self.mix):
            raise ValueError("give either card or mix; in the place of a recipe's other one the whole block is given "
                             f"anew: {{card: NAME, batch: {self.batch}}}, or {{mix: [{{card: NAME}}, ...], batch: "
                             f"{self.batch}}}")
        idle = [key for key in ("root", "split", "subset") if key in self.model_fields_set]
        if self.mix and idle:
            raise ValueError(f"'{idle[0]}' belongs to the sets of 'mix'")
        if len({one.weight is None for one in self.mix}) > 1:
            raise ValueError("give every set of 'mix' a weight, or none of them")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_what_is_not_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        of_one = ("card", "root", "split", "subset")
        idle = of_one if self.mix else ("mix",)
        return {key: value for key, value in dump(self).items()
                if key not in idle and not (key == "records" and not value)}

    def sets(self) -> list[SetData]:
        """Return the sets that are read together, or the only one."""
        return [*self.mix] if self.mix else [self]


class Data(Strict):
    """The streams of the run and how they are read."""

    workers: Free[int] = Field(
        4, ge=0, description="loader processes per training process; 0 reads in the training process"
    )
    max_corrupt: Free[float] = Field(
        0.001, ge=0, le=1, description="share of unreadable samples above which the run stops"
    )
    train: StreamData | None = None
    labeled: StreamData | None = None
    unlabeled: StreamData | None = None

    def streams(self) -> dict[str, StreamData]:
        """Return the streams that the recipe names, by name."""
        return {name: value for name, value in self if isinstance(value, StreamData)}


Precision = Literal["auto", "bf16", "fp16", "fp32"]


class Train(Strict):
    """Length, numerics and bookkeeping of the run."""

    epochs: int | None = Field(None, gt=0)
    updates: int | None = Field(None, gt=0, description="instead of epochs: the number of optimizer updates")
    schedule_scale: float = Field(1.0, gt=0, description="schedules run over total / schedule_scale updates")
    seed: int = Field(0, ge=0)
    processes: Free[int | None] = Field(None, gt=0, description="refuse to start with another number of processes")
    patience: Free[float] = Field(
        600, gt=0, description="seconds after which a process that does not answer is given up; loader processes get a "
        "quarter of it, then are started anew, and again a quarter"
    )
    precision: Precision = Field("auto", description="auto: bf16 on GPUs and on CPUs with AMX, else fp32")
    grad_accum: int = Field(1, gt=0, description="micro-batches per update")
    blocks: int | None = Field(
        None, gt=0, description="contiguous blocks of the global batch, each with draws and statistics of its own "
        "where a method works by them; null: one per process and micro-batch of the first start"
    )
    sync_bn: bool = Field(True, description="BatchNorm statistics over all processes")
    channels_last: bool = True
    compile: bool = Field(False, description="torch.compile backbones, their momentum copies and, on a GPU, jitter")
    deterministic: bool = Field(False, description="bit-reproducible kernels on a GPU (slower)")
    nonfinite: Free[Literal["stop", "skip"]] = Field(
        "stop", description="what a NaN or infinity in loss or gradient does"
    )
    checkpoint_every: Free[int | None] = Field(
        1000, gt=0, description="updates between checkpoints; null: by time, so often that saving takes 2 % of it"
    )
    keep: Free[int] = Field(2, gt=1, description="checkpoints kept; the newest may be damaged, so at least 2")
    log_every: Free[int] = Field(10, gt=0, description="updates between lines of metrics.jsonl")
    sinks: Free[list[Literal["tensorboard", "wandb"]]] = Field(
        [], description="where metrics go besides metrics.jsonl"
    )
    allow_changed_data: Free[bool] = Field(False, description="go on although the data is not what the run began with")
    allow_rescale: Free[bool] = Field(
        False, description="go on with another number of processes, and with the same batches, equal but for rounding"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if (self.epochs is None) == (self.updates is None):
            both = "; set the other to null" if self.epochs else ""
            raise ValueError(f"give either epochs or updates{both}")
        return self


class Eval(Strict):
    """What is measured while training, and the protocols that run at the end."""

    every: float = Field(10, ge=0, description="epochs between online measurements (kNN, health); 0: none")
    bank: int = Field(4096, gt=0, description="training images in the bank of the online kNN")
    queries: int = Field(1024, gt=0, description="held-out training images that query it")
    at_end: list[str] = Field([], description="protocols of eval/ to run after the last update")


class Recipe(Strict):
    """A complete experiment."""

    method: Annotated[Any, Field(description="the method's name and its options")]
    backbone: Backbone
    data: Data
    optim: Optim
    train: Train
    eval: Free[Eval] = Eval()
