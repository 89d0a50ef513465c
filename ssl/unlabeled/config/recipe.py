"""The typed recipe: what a pretraining run is made of.

Fields carry their units in the name or description. Nothing here imports torch.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import (
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_serializer,
    model_validator,
)

from unlabeled.config.base.curve import CountFrom, Decay, Every, Portion, Shape, Table, WarmupRule, rising_ends
from unlabeled.config.base.objects import is_dotted
from unlabeled.config.base.strict import Strict
from unlabeled.config.marks import Free
from unlabeled.config.sources import public
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
    """

    streams: ClassVar[tuple[str, ...]] = ("train",)
    needs: ClassVar[frozenset[str]] = frozenset()

    name: str

    def smallest_batch(self, stream: str) -> Smallest | None:
        """Return the fewest images of a stream that an update needs; None where one is enough."""
        return None


class Backbone(Strict):
    """The network that is trained and exported."""

    name: str = Field(description="a name of the backbone table, any timm model, torchvision:NAME, or module:object of "
                      "one's own; with init that network's, if not given")
    init: str | None = Field(
        None, description="start from the network of an earlier run, RUN or RUN:EXPORT, such as runs/x:backbone+head1, "
        "or from public weights: timm:NAME, timm:NAME@FILE, torchvision:NAME or torchvision:NAME@FILE"
    )
    init_weights: bool = Field(True, description="false: that network at random initialisation, as a baseline")
    width: float = Field(1, gt=0, description="factor on every channel count (timm ResNets only)")
    stem: Literal["imagenet", "cifar"] = Field("imagenet", description="cifar: 3x3 stride-1 convolution, no max-pool")
    sk_ratio: float = Field(
        0, ge=0, le=1, description="SimCLRv2's selective kernels: width of their gate by filters; 0: none"
    )
    project_first: bool = Field(
        False, description="1x1 convolution in the first shortcut of layer1 too (SimCLR's ResNet-18 and 34)"
    )
    blocks: Literal[3, 4, 5] = Field(4, description="convolution blocks of RotNet's NIN")
    avg_after_block3: bool = Field(False, description="average pool after the NIN's third block, if more follow")
    options: dict[str, Any] = Field(
        {}, description="options of timm's constructor, such as {img_size: 32, drop_path_rate: 0.1}, or of one's own"
    )
    grad_checkpointing: bool = Field(False, description="recompute activations in the backward pass to save memory")

    @model_validator(mode="after")
    def _options_belong_to_the_network(self) -> Backbone:
        if self.init is None and not self.init_weights:
            raise ValueError("'init_weights' has no effect without init")
        for key, names in BACKBONE_OPTIONS.items():
            if self.name not in names and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"'{key}' has no effect with {self.name}; it belongs to {', '.join(names)}")
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
            raise ValueError("give either card or mix")
        idle = [key for key in ("root", "split", "subset", "records") if key in self.model_fields_set]
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


class LearningRate(Strict):
    """The peak learning rate as a rule of the global batch, or a table of learning rates by epoch."""

    base: float | None = Field(None, gt=0)
    table: Table | None = Field(
        None,
        min_length=1,
        description="instead of base and schedule: pairs (end, lr); epochs before the first end have the first lr, and "
        "so on; after the last end the last lr stays",
    )
    scaling: Literal["linear", "sqrt", "none"] = "none"
    per: int | None = Field(None, gt=0, description="linear scaling: base is for this many images (256 if not given)")
    warmup_start: float = Field(0, ge=0, le=1, description="where the warm-up begins, as a share of the peak")
    warmup_rule: WarmupRule = "k/w"
    final: float = Field(0, ge=0, description="the learning rate at the end of the schedule's wave")
    portion: Portion = 1
    count_from: CountFrom = "warmup"
    every: Every = "update"

    @model_validator(mode="after")
    def _base_or_table(self) -> LearningRate:
        if (self.base is None) == (self.table is None):
            raise ValueError("give either base or table")
        if self.table is not None:
            if not rising_ends(self.table) or min(rate for _, rate in self.table) <= 0:
                raise ValueError(f"table holds pairs (end epoch, lr) with rising ends, lr > 0; got {self.table}")
            if self.scaling != "none":
                raise ValueError("'scaling' goes with base; the rates of a table are taken as they are")
            idle = [key for key in _CURVE if key in self.model_fields_set]
            if idle:
                raise ValueError(f"'{idle[0]}' has no effect with table, which is the whole schedule")
        return self

    @model_validator(mode="after")
    def _per_belongs_to_linear(self) -> LearningRate:
        if self.per is not None and self.scaling != "linear":
            raise ValueError(f"'per' goes with scaling: linear only; with {self.scaling} it would have no effect")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_the_curve_of_a_table(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if self.table is None or key not in _CURVE}

    def peak(self, batch: int) -> float:
        """Return the peak learning rate at a global batch of `batch` images (arXiv 2006.10029 section 3)."""
        if self.table is not None:
            return max(rate for _, rate in self.table)
        assert self.base is not None
        match self.scaling:
            case "linear":
                return self.base * batch / (self.per or 256)
            case "sqrt":
                return self.base * math.sqrt(batch)
            case _:
                return self.base


# options of `lr` that a constant rate has no use for, and those that a table has none for
_WAVE = ("final", "portion", "every")
_CURVE = ("warmup_start", "warmup_rule", "count_from", *_WAVE)


class Lars(Strict):
    """The switches in which published forms of LARS differ; the defaults are SimCLR's (arXiv 2006.10029 code)."""

    eta: float = Field(0.001, gt=0, description="trust coefficient")
    lr_in_momentum: bool = Field(True, description="true: the buffer holds lr times gradient; false: the gradient")
    norm: Literal["decayed", "sum", "update"] = Field(
        "decayed",
        description="denominator of the trust ratio: |g + wd p|, |g| + wd |p|, or the norm of the momentum update",
    )
    eps: float = Field(0.0, ge=0, description="added to the denominator of the trust ratio")


def _own_or_known(name: Any, known: ValidatorFunctionWrapHandler) -> Any:
    return name if is_dotted(name) else known(name)


OptimizerName = Annotated[
    Literal["lars", "sgd", "adamw"],
    WrapValidator(_own_or_known),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({
        "anyOf": [{"enum": ["lars", "sgd", "adamw"]}, {"type": "string", "pattern": ":"}],
        "description": "or module:object of one's own, called with parameter groups, lr and options",
    }),
]


class Optim(Strict):
    """Optimizer, learning rate and their schedule."""

    name: OptimizerName
    options: dict[str, Any] = Field({}, description="of an optimizer of one's own, for its constructor")
    lr: LearningRate
    warmup_epochs: float = Field(0, ge=0, description="linear warm-up from lr.warmup_start, in epochs")
    schedule: Shape = Field("cosine", description="the wave from the peak to lr.final after the warm-up")
    weight_decay: Decay = Field(0.0, description="a number, or a curve over the run: {start, end, ...}")
    exclude_decay: list[str] = Field(
        ["norm", "bias"], description="norm, bias, one_dimensional, or patterns of parameter names (fnmatch)"
    )
    exclude_lars: list[str] = Field(["norm", "bias"], description="as exclude_decay, for the LARS adaptation")
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    lars: Lars = Lars()
    clip: float | None = Field(None, gt=0, description="clip the gradient of every part to this norm")

    @model_validator(mode="after")
    def _a_constant_rate_has_no_wave(self) -> Optim:
        idle = [key for key in _WAVE if key in self.lr.model_fields_set]
        if self.schedule == "constant" and idle:
            raise ValueError(f"'lr.{idle[0]}' has no effect with schedule: constant, which has no wave")
        return self

    @model_validator(mode="after")
    def _options_have_a_user(self) -> Optim:
        if self.options and not is_dotted(self.name):
            raise ValueError(f"'options' has no effect with {self.name}; it belongs to optimizers of one's own")
        for key, names in _USERS.items():
            if key in self.model_fields_set and self.name not in names:
                raise ValueError(f"'{key}' has no effect with {self.name}; it belongs to {' and '.join(names)}")
        return self

    @model_validator(mode="after")
    def _a_table_is_the_whole_schedule(self) -> Optim:
        idle = [key for key in ("schedule", "warmup_epochs") if key in self.model_fields_set]
        if self.lr.table is not None and idle:
            raise ValueError(f"'{idle[0]}' has no effect with lr.table, which is the whole schedule")
        return self

    @model_serializer(mode="wrap")
    def _leave_out_options_without_user(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        idle = {"schedule", "warmup_epochs"} if self.lr.table is not None else set()
        idle |= {key for key, names in _USERS.items() if self.name not in names}
        idle |= set() if is_dotted(self.name) else {"options"}
        options = {key: value for key, value in dump(self).items() if key not in idle}
        if self.schedule == "constant":
            options["lr"] = {key: value for key, value in options["lr"].items() if key not in _WAVE}
        return options


# options of `optim` that only some optimizers know
_USERS = {
    "momentum": ("lars", "sgd"),
    "nesterov": ("lars", "sgd"),
    "betas": ("adamw",),
    "lars": ("lars",),
    "exclude_lars": ("lars",),
}


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
