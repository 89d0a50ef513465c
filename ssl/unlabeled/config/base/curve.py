"""Numbers that change over a run, as a recipe states them; `ops.curves` evaluates them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from unlabeled.config.base.strict import Strict

# what learning rates and all other curves have in common
Shape = Literal["cosine", "quarter_cosine", "linear", "constant"]
Portion = Annotated[
    float, Field(gt=0, le=1, description="share of the wave that is run; below 1 it does not come to its end")
]
WarmupRule = Annotated[
    Literal["k/w", "(k+1)/w", "k/(w-1)"],
    Field(description="how far the warm-up has come at its update k (from 0) of w"),
]
CountFrom = Annotated[
    Literal["warmup", "start"],
    Field(description="where the wave begins: after the warm-up, or at the run's start, hidden by the warm-up"),
]
Every = Annotated[
    Literal["update", "epoch"], Field(description="when the wave moves; the warm-up moves at every update")
]
Table = list[tuple[float, float]]


def rising_ends(table: Table) -> bool:
    """Return whether the ends of the pairs (end epoch, value) are above 0 and rise."""
    ends = [end for end, _ in table]
    return ends[0] > 0 and ends == sorted(set(ends))


class CurveRule(Strict):
    """A number that changes over the run: a warm-up, then a wave from start to end; or a table by epoch."""

    start: float | None = Field(None, description="where the wave begins, which is where the warm-up ends")
    end: float | None = Field(None, description="where the wave ends, at the end of the schedule")
    shape: Shape = Field("cosine", description="of the wave; constant: it stays at start")
    portion: Portion = 1
    every: Every = "update"
    warmup_epochs: float = Field(0, ge=0, description="linear warm-up from warmup_start, in epochs")
    warmup_start: float | None = Field(None, description="where the warm-up begins")
    warmup_rule: WarmupRule = "k/w"
    count_from: CountFrom = "warmup"
    table: Table | None = Field(
        None,
        min_length=1,
        description="instead of all else: pairs (end, value); epochs before the first end have the first value, and so "
        "on; after the last end the last value stays",
    )

    @model_validator(mode="after")
    def _start_or_table(self) -> CurveRule:
        if (self.start is None) == (self.table is None):
            raise ValueError("give either start or table")
        if self.table is not None and not rising_ends(self.table):
            raise ValueError(f"table holds pairs (end epoch, value) with rising ends above 0; got {self.table}")
        return self

    @model_validator(mode="after")
    def _every_key_has_an_effect(self) -> CurveRule:
        for key, why in self._idle().items():
            if key in self.model_fields_set and getattr(self, key) is not None:
                raise ValueError(f"'{key}' has no effect {why}")
        return self

    @model_validator(mode="after")
    def _both_ends_are_given(self) -> CurveRule:
        if self.table is None and self.shape != "constant" and self.end is None:
            raise ValueError("give end too, or shape: constant")
        if self.warmup_epochs and self.warmup_start is None:
            raise ValueError("give warmup_start too, the value at which the warm-up begins")
        return self

    def _idle(self) -> dict[str, str]:
        """Return the keys that are without effect, with the reason."""
        if self.table is not None:
            return dict.fromkeys(set(CurveRule.model_fields) - {"table"}, "with table, which is the whole curve")
        idle = {"table": "with start"}
        if not self.warmup_epochs:
            idle |= dict.fromkeys(("warmup_start", "warmup_rule", "count_from"), "without warmup_epochs")
        if self.shape == "constant":
            idle |= dict.fromkeys(("end", "portion", "every", "count_from"), "with shape: constant, which has no wave")
        return idle

    @model_serializer(mode="wrap")
    def _leave_out_idle_keys(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        idle = self._idle()
        return {key: value for key, value in dump(self).items() if key not in idle}

    def values(self) -> Iterator[tuple[str, float]]:
        """Yield the values between which the curve runs, each with the key that says so."""
        for key in ("start", "end", "warmup_start"):
            if getattr(self, key) is not None:
                yield key, getattr(self, key)
        yield from (("table", value) for _, value in self.table or ())


def _form(value: Any) -> str:
    return "curve" if isinstance(value, dict | CurveRule) else "number"


def _all(allowed: Callable[[float], bool], words: str) -> AfterValidator:
    """Make a validator that refuses a curve with a value that the number itself could not have."""

    def check(rule: CurveRule) -> CurveRule:
        for key, value in rule.values():
            if not allowed(value):
                raise ValueError(f"'{key}' must be {words}, given {value:g}")
        return rule

    return AfterValidator(check)


# a number, or a curve all of whose values are allowed as a number
Decay = Annotated[
    Annotated[float, Field(ge=0), Tag("number")]
    | Annotated[CurveRule, _all(lambda x: x >= 0, "at least 0"), Tag("curve")],
    Discriminator(_form),
]
Momentum = Annotated[
    Annotated[float, Field(ge=0, le=1), Tag("number")]
    | Annotated[CurveRule, _all(lambda x: 0 <= x <= 1, "from 0 to 1"), Tag("curve")],
    Discriminator(_form),
]
Temperature = Annotated[
    Annotated[float, Field(gt=0), Tag("number")]
    | Annotated[CurveRule, _all(lambda x: x > 0, "greater than 0"), Tag("curve")],
    Discriminator(_form),
]


def curves(block: Any, path: str = "") -> Iterator[tuple[str, CurveRule]]:
    """Yield the curves of a configuration block, each with its dotted key."""
    if isinstance(block, CurveRule):
        yield path, block
    elif isinstance(block, BaseModel):
        for name, value in block:
            yield from curves(value, f"{path}.{name}" if path else name)
    elif isinstance(block, list | tuple):
        for number, value in enumerate(block):
            yield from curves(value, f"{path}.{number}")
    elif isinstance(block, dict):
        for name, value in block.items():
            yield from curves(value, f"{path}.{name}")
