"""The settings of `unlabeled extract`. Imports no torch."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator, model_validator

from unlabeled.config.recipe import Strict

_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}
_CHOICES = ("width", "params", "flops", "all")


class ExtractSettings(Strict):
    """Which sizes are taken out of an elastic network, and what is made of them. Lists: 384,512 or [384, 512]."""

    width: tuple[int, ...] = Field((), description="channels of the first layer; every width with every depth")
    depth: tuple[str, ...] = Field((), description="blocks: 12, or 4-6 where two stages are elastic")
    params: tuple[float, ...] = Field((), description="22M: the trained size with the nearest number of parameters")
    flops: tuple[float, ...] = Field((), description="4.6G: with the nearest number of multiply-adds per image")
    all: bool = Field(False, description="all trained sizes")
    out: str | None = Field(None, description="folder of the files; if not given, extract/ in the run's folder")
    knn: bool = Field(False, description="also score every size by eval/knn.yaml, whose settings may follow")

    @field_validator("width", "depth", "params", "flops", mode="before")
    @classmethod
    def _several(cls, value: Any, info: Any) -> tuple[Any, ...]:
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        words = [str(part).strip() for part in parts]
        form, read = _FORMS[info.field_name]
        wrong = next((word for word in words if not re.fullmatch(form, word)), None)
        if wrong is not None:
            raise ValueError(f"{_EXAMPLES[info.field_name]}, given '{wrong}'")
        return tuple(read(word) for word in words)

    @model_validator(mode="after")
    def _one_choice(self) -> ExtractSettings:
        if bool(self.width) != bool(self.depth):
            has, lacks = ("width", "depth") if self.width else ("depth", "width")
            raise ValueError(f"'{has}' needs '{lacks}' beside it, such as width=384 depth=12")
        chosen = [key for key in _CHOICES if getattr(self, key)]
        if not chosen:
            raise ValueError("no size is named: give width=384 depth=12, params=22M, flops=4.6G or all=true")
        if len(chosen) > 1:
            raise ValueError(f"give one of {' and '.join(chosen)}: each of them names sizes")
        return self


def _number(word: str) -> float:
    digits = word.rstrip("kKmMgGbB")
    return float(digits) * _FACTORS[word[len(digits) :].lower()]


_NUMBER = r"(?=.*[1-9])\d+(\.\d+)?([eE]\+?\d+)?[kKmMgGbB]?"
_FORMS: dict[str, tuple[str, Any]] = {
    "width": (r"[1-9]\d*", int),
    "depth": (r"[1-9]\d*(-[1-9]\d*)*", str),
    "params": (_NUMBER, _number),
    "flops": (_NUMBER, _number),
}
_EXAMPLES = {
    "width": "whole numbers above 0 are needed, such as 384 or 384,512",
    "depth": "numbers of blocks are needed, such as 12, or 12,24, or 4-6 of two stages",
    "params": "numbers above 0 are needed, such as 22M or 22M,86M",
    "flops": "numbers above 0 are needed, such as 4.6G or 4.6G,17.6G",
}
