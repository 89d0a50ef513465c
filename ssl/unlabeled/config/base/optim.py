"""The `optim` block: optimizer, learning rate and their schedule. Imports no torch."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

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


class AdamP(Strict):
    """The switches of AdamP; the defaults are its paper's (arXiv 2006.08217)."""

    eps: float = Field(1e-8, gt=0, description="added to the denominators")
    delta: float = Field(
        0.1, ge=0, description="weights are scale-invariant where |cos(gradient, weight)| < delta / sqrt(numbers)"
    )
    wd_ratio: float = Field(0.1, ge=0, description="factor on the weight decay of scale-invariant weights")


def _own_or_known(name: Any, known: ValidatorFunctionWrapHandler) -> Any:
    return name if is_dotted(name) else known(name)


OptimizerName = Annotated[
    Literal["lars", "sgd", "adamw", "adamp"],
    WrapValidator(_own_or_known),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({
        "anyOf": [{"enum": ["lars", "sgd", "adamw", "adamp"]}, {"type": "string", "pattern": ":"}],
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
    adamp: AdamP = AdamP()
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
    "nesterov": ("lars", "sgd", "adamp"),
    "betas": ("adamw", "adamp"),
    "adamp": ("adamp",),
    "lars": ("lars",),
    "exclude_lars": ("lars",),
}
