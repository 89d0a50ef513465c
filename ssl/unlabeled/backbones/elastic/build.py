"""From `backbone: {name: elastic_..., options: {...}}` to an elastic network."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from unlabeled.backbones.elastic.network import ElasticNetwork
from unlabeled.backbones.elastic.resnet import ElasticResNet
from unlabeled.backbones.elastic.sizes import Grid, Size, size_of, steps
from unlabeled.backbones.elastic.swin import ElasticSwin
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
_SWINS: dict[str, dict[str, Any]] = {
    "elastic_swin_b": {"widths": (96, 128, 16), "depths": (6, 18)},
    "elastic_swin_tiny": {"widths": (32, 64, 16), "depths": (2, 6), "patch_size": 2, "window": 4},  # for 32 pixels
}
_RESNETS: dict[str, dict[str, Any]] = {
    "elastic_resnet152": {"widths": (64, 128, 32), "depths": ((4, 8), (6, 36))},
    "elastic_resnet_tiny": {
        "widths": (16, 32, 8), "depths": ((1, 2), (1, 3)), "outer_blocks": (1, 1), "groups": 8, "stem": "cifar",
    },
}  # fmt: skip


def build_elastic_vit(cfg: Backbone) -> ElasticNetwork:
    """Build an elastic vision transformer with random weights. Raises UserError for options it does not have."""
    return _build(cfg, elastic_vit, _VITS)


def build_elastic_swin(cfg: Backbone) -> ElasticNetwork:
    """Build an elastic Swin transformer with random weights. Raises UserError for options it does not have."""
    return _build(cfg, elastic_swin, _SWINS)


def build_elastic_resnet(cfg: Backbone) -> ElasticNetwork:
    """Build an elastic ResNet with random weights. Raises UserError for options it does not have."""
    return _build(cfg, elastic_resnet, _RESNETS)


def _build(cfg: Backbone, builder: Callable[..., ElasticNetwork], table: Mapping[str, Mapping[str, Any]],
           ) -> ElasticNetwork:
    refuse_unknown_options("backbone.options", builder, cfg.name, cfg.options)
    _refuse_unfit_numbers(builder, cfg.options)
    return builder(**{**table[cfg.name], **constructor_options(cfg)})


def _refuse_unfit_numbers(builder: Callable[..., ElasticNetwork], options: Mapping[str, Any]) -> None:
    """Raise UserError for an option that is no number of its kind, whatever the other options are."""
    for key, value in options.items():
        kind = inspect.signature(builder).parameters[key].annotation
        if kind in ("int", int) and not (type(value) is int and value > 0):
            raise UserError(f"backbone.options.{key} needs a whole number above 0, given {value}")
        if key == "sample_bias" and not (type(value) in (int, float) and 1 <= value < math.inf):
            raise UserError(f"backbone.options.sample_bias needs a number from 1 on, given {value}: so many times as "
                            "often as the largest is the smallest size trained")
        if key == "layer_scale" and not (type(value) in (int, float) and 0 < value < math.inf):
            raise UserError(f"backbone.options.layer_scale needs a number above 0, given {value}")


def elastic_vit(*, widths: Sequence[int], depths: Sequence[int], sample_bias: float = 3, patch_size: int = 16,
                head_width: int = 64, img_size: int = 224, layer_scale: float = 1e-5, drop_path_rate: float = 0.0,
                ) -> ElasticViT:
    """Build one of widths (smallest, largest, step) and depths (smallest, largest).

    sample_bias: how much more often the smallest width and depth are trained than the largest. Raises UserError for
    widths or depths that do not end at the largest.
    """
    grid = Grid(_widths(widths), tuple((depth,) for depth in _depths(depths)), sample_bias, sample_bias)
    return ElasticViT(grid, patch=patch_size, head_width=head_width, img_size=img_size, layer_scale=layer_scale,
                      drop_path=drop_path_rate)


def elastic_swin(*, widths: Sequence[int], depths: Sequence[int], sample_bias: float = 2, patch_size: int = 4,
                 window: int = 7, head_width: int = 16, drop_path_rate: float = 0.0, cut_from: str | None = None,
                 ) -> ElasticSwin:
    """Build one of widths of stage 1 (smallest, largest, step) and blocks of stage 3 (smallest, largest).

    window: in places. cut_from: the size of the whole, such as 128x18, if this is a network of one size that was cut
    out. Raises UserError for widths or depths that do not end at the largest.
    """
    grid = Grid(_widths(widths), tuple((depth,) for depth in _depths(depths)), sample_bias, sample_bias)
    return ElasticSwin(grid, patch=patch_size, window=window, head_width=head_width, drop_path=drop_path_rate,
                       cut_from=_whole(cut_from))


def elastic_resnet(*, widths: Sequence[int], depths: Sequence[Sequence[int]], sample_bias: float = 2,
                   outer_blocks: Sequence[int] = (3, 3), groups: int = 32,
                   stem: Literal["imagenet", "cifar"] = "imagenet", cut_from: str | None = None) -> ElasticResNet:
    """Build one of middle widths of stage 1 (smallest, largest, step) and blocks of stages 2 and 3 (both: smallest,
    largest).

    sample_bias: of depths alone. outer_blocks: of stages 1 and 4. cut_from: the size of the whole, such as 128x8-36, if
    this is a network of one size that was cut out. Raises UserError for widths or depths that do not end at the
    largest, and for a stem that there is not.
    """
    if stem not in ("imagenet", "cifar"):
        raise UserError(f"backbone.options.stem is imagenet or cifar, given {stem}")
    if not isinstance(depths, Sequence) or len(depths) != 2:
        raise UserError("backbone.options.depths needs [[smallest, largest], [smallest, largest]], the blocks of "
                        f"stages 2 and 3, given {depths}")
    first, last = _numbers("outer_blocks", outer_blocks, "[of stage 1, of stage 4]")
    # fewer blocks first; a stable sort, as published
    pairs = sorted(itertools.product(*(_depths(stage) for stage in depths)), key=sum)
    grid = Grid(_widths(widths), tuple(pairs), 1, sample_bias)
    return ElasticResNet(grid, outer=(first, last), groups=groups, stem=stem, cut_from=_whole(cut_from))


def _widths(widths: Sequence[int]) -> tuple[int, ...]:
    smallest, largest, step = _numbers("widths", widths, "[smallest, largest, step]")
    return steps(smallest, largest, step, key="widths")


def _depths(depths: Sequence[int]) -> tuple[int, ...]:
    smallest, largest = _numbers("depths", depths, "[smallest, largest]")
    return steps(smallest, largest, 1, key="depths")


def _whole(cut_from: str | None) -> Size | None:
    """Read the size that a network was cut out of. Raises UserError for a text of another form."""
    size = size_of(cut_from) if isinstance(cut_from, str) else None
    if size is None and cut_from is not None:
        raise UserError(f"backbone.options.cut_from is a size such as 128x18, given {cut_from}")
    return size


def _numbers(key: str, values: Sequence[int], form: str) -> Sequence[int]:
    """Return `values`. Raises UserError unless they are as many whole numbers as `form` says."""
    count = 1 + form.count(",")
    if not isinstance(values, Sequence) or len(values) != count or not all(type(v) is int and v > 0 for v in values):
        given = list(values) if isinstance(values, tuple) else values
        raise UserError(f"backbone.options.{key} needs {form}, whole numbers above 0, given {given}")
    return values
