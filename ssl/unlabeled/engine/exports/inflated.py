"""Exports of 2D ResNets as networks for clips."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import cast

from unlabeled.backbones.build import build_backbone
from unlabeled.backbones.video.inflate import inflate, misfit
from unlabeled.backbones.video.r3d import NETWORKS, R3D
from unlabeled.config.recipe import Backbone
from unlabeled.data.clips import Spacing
from unlabeled.errors import UserError
from unlabeled.methods.base import Export

CLIP = Spacing(16, 2)  # of networks that were trained on no clips


def inflated(export: Export, cfg: Backbone, source: str, *, weights: bool = True) -> Export:
    """Return the 3D network that `cfg` names with the weights of an exported 2D one, which `source` is called.

    Size, mean and deviation of its input stay those of the 2D network; its clips are CVRL's. weights: False leaves it
    at its own random weights. What is 3D already is returned as it is, and so is every export where `cfg` names no 3D
    network. Raises UserError for a network that cannot be inflated.
    """
    if cfg.name not in NETWORKS:
        return export
    flat = export.build().cpu()  # of a run that is evaluated on a GPU it is there
    if any(isinstance(module, R3D) for module in flat.modules()):  # the whole, a block of it, or with a classifier
        return export
    if export.gives != "vector":
        raise UserError(f"'{source}' gives {export.gives}, and {cfg.name} is inflated from what gives vectors; name "
                        "another export, as in RUN:backbone")
    network = cast(R3D, build_backbone(cfg))
    try:
        if weights:
            inflate(network, flat)
        elif problem := misfit(network, flat):
            raise UserError(problem)
    except UserError as error:
        raise UserError(f"'{source}' cannot be inflated into {cfg.name}: {error}") from error
    return replace(export, build=partial(copy.deepcopy, network.eval()), input=replace(export.input, clip=CLIP))
