"""What a setting leaves as it is, marked on its field: `workers: Free[int] = Field(4, ...)`.

A field without a mark matters: work that was begun with another value of it does not go on. So a new field that nobody
thought of is refused rather than passed over. Imports no torch.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, TypeVar

from pydantic import BaseModel

from unlabeled.config.yaml.explain import blocks


class Mark(Enum):
    """FREE: the result does not depend on the field, or shows its change by itself (other images, other classes).

    SCORING: the score depends on it, but not the training before it.
    """

    FREE = "free"
    SCORING = "scoring"


Value = TypeVar("Value")
Free = Annotated[Value, Mark.FREE]
Scoring = Annotated[Value, Mark.SCORING]


def marked(model: type[BaseModel], *marks: Mark) -> frozenset[str]:
    """Return the dotted keys of the fields with one of the marks, within blocks too; of a marked block its own key."""
    keys = set()
    for name, field in model.model_fields.items():
        if any(mark in field.metadata for mark in marks):
            keys.add(name)
        else:
            keys |= {f"{name}.{key}" for block in blocks(field.annotation) for key in marked(block, *marks)}
    return frozenset(keys)


def covers(keys: frozenset[str], key: str) -> bool:
    """Return whether a dotted key, or a block that it lies in, is one of `keys`."""
    parts = key.split(".")
    return any(".".join(parts[:length]) in keys for length in range(1, len(parts) + 1))
