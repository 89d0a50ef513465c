"""What stores of label maps say of themselves; their rows are those of `ops.targets.label_pooling`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlabeled.errors import UserError

KIND = "labelmap"  # of the store
ORIENTATION, RESIZE = "row_major_HW", "squash"  # how its maps lie: by rows, over the whole image


def classes_of(about: Mapping[str, Any]) -> int:
    """Return how many classes the maps of a store know. Raises UserError for maps that lie otherwise."""
    for key, needed in (("orientation", ORIENTATION), ("resize", RESIZE)):
        if about.get(key) != needed:
            raise UserError(f"the label maps have {key} '{about.get(key)}', but '{needed}' is needed, or targets are "
                            "pooled from other places than those of the crop; make them with: unlabeled labelmaps, or "
                            "unlabeled convert for published ones")
    return int(about["num_classes"])
