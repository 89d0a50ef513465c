"""From `backbone: {name: elastic_..., options: {...}}` to an elastic network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unlabeled.backbones.elastic.network import ElasticNetwork
from unlabeled.backbones.elastic.sizes import Grid, steps
from unlabeled.backbones.elastic.vit import ElasticViT
from unlabeled.backbones.options import constructor_options
from unlabeled.config.base.objects import refuse_unknown_options
from unlabeled.config.recipe import Backbone
from unlabeled.errors import UserError

# what a name stands for; `backbone.options` may say otherwise
_VITS: dict[str, dict[str, Any]] = {
    "elastic_vit_l": {"widths": (384, 1024, 64), "depths": (12, 24)},  # arXiv 2408.01031 table 1
    "elastic_vit_b": {"widths": (384, 768, 64), "depths": (6, 12)},
    "elastic_vit_s": {"widths": (192, 384, 64), "depths": (6, 12)},
    "elastic_vit_tiny": {"widths": (64, 192, 64), "depths": (6, 12)},
}


def build_elastic_vit(cfg: Backbone) -> ElasticNetwork:
    """Build an elastic vision transformer with random weights. Raises UserError for options it does not have."""
    refuse_unknown_options("backbone.options", elastic_vit, cfg.name, cfg.options)
    return elastic_vit(**{**_VITS[cfg.name], **constructor_options(cfg)})


def elastic_vit(*, widths: Sequence[int], depths: Sequence[int], sample_bias: float = 3, patch_size: int = 16,
                head_width: int = 64, img_size: int = 224, layer_scale: float = 1e-5, drop_path_rate: float = 0.0,
                ) -> ElasticViT:
    """Build one of widths (smallest, largest, step) and depths (smallest, largest).

    sample_bias: how much more often the smallest width and depth are trained than the largest. Raises UserError for
    widths or depths that do not end at the largest.
    """
    smallest, largest, step = _numbers("widths", widths, 3)
    first, last = _numbers("depths", depths, 2)
    grid = Grid(steps(smallest, largest, step, key="widths"),
                tuple((depth,) for depth in steps(first, last, 1, key="depths")), sample_bias, sample_bias)
    return ElasticViT(grid, patch=patch_size, head_width=head_width, img_size=img_size, layer_scale=layer_scale,
                      drop_path=drop_path_rate)


def _numbers(key: str, values: Sequence[int], count: int) -> Sequence[int]:
    form = "[smallest, largest, step]" if count == 3 else "[smallest, largest]"
    if not isinstance(values, Sequence) or len(values) != count or not all(type(v) is int and v > 0 for v in values):
        given = list(values) if isinstance(values, Sequence) else values
        raise UserError(f"backbone.options.{key} needs {form}, whole numbers above 0, given {given}")
    return values
