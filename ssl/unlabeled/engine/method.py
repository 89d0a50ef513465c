"""From a recipe to its method, and from an earlier run to the network that it hands on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

from safetensors import SafetensorError
from safetensors.torch import load_file

from unlabeled.backbones.build import build_backbone
from unlabeled.config.read import read_recipe
from unlabeled.config.recipe import Recipe
from unlabeled.engine.build import method_class, stored_info
from unlabeled.engine.export import find_export, inner, open_residuals
from unlabeled.engine.sources import adopt, refuse_bad_export, split_source
from unlabeled.engine.steps import seed_everything
from unlabeled.errors import UserError
from unlabeled.methods.base import BackboneModule, Export, Info, Method


def build_method(recipe: Recipe, info: Info, run: Path | None = None, *, weights: bool = True) -> Method:
    """Build the method with its initial weights, the same on every rank.

    run: its folder, which keeps copies of the networks it starts from (RUN/sources), so that it stands on its own.
    weights: False leaves all networks at random, those from earlier runs too. Raises UserError for a bad source.
    """
    seed_everything(info.seed, "init")
    backbones: list[BackboneModule] = []

    def make_backbone(source: str | None = None) -> BackboneModule:
        if source is None and recipe.backbone.init is None:
            network = cast(BackboneModule, build_backbone(recipe.backbone))
            network.input = network.gives = None
        else:
            trained = weights and (source is not None or recipe.backbone.init_weights)
            origin = source or recipe.backbone.init or ""
            export = load_export(origin if run is None else adopt(origin, run), weights=trained)
            export = export if trained else open_residuals(export)
            network = cast(BackboneModule, export.build().train().requires_grad_(True))
            network.input, network.gives = export.input, export.gives
            seed_everything(info.seed, "init", len(backbones))  # what follows does not depend on how it was built
        backbones.append(network)
        return network

    method = method_class(recipe)(recipe.method, make_backbone, info)
    if recipe.train.compile:
        copies = (module for module in method.modules() if hasattr(module, "gives"))  # made by deepcopy
        for network in dict.fromkeys([*backbones, *copies]):  # frozen teachers are no modules of the method
            network.compile()
    return method


def load_export(source: str, *, weights: bool = True) -> Export:
    """Return an export of a run, RUN or RUN:EXPORT, with the weights that the run handed out at its end.

    weights: False leaves it at random. Raises UserError if there is no run or no such export, if it has not finished,
    and if the file of the export is damaged.
    """
    run, name = split_source(source)
    if not (run / "recipe.yaml").exists():
        raise UserError(f"{run} is no run: {run / 'recipe.yaml'} is missing; give RUN or RUN:EXPORT, such as "
                        "runs/simclrv2-s0:backbone+head1")
    recipe = read_recipe(run / "recipe.yaml")
    method = build_method(recipe, stored_info(run, recipe), run, weights=False)
    name, block, export = find_export(method.exports(), name)
    network = export.build()
    if weights:
        file = refuse_bad_export(run, name)
        try:
            network.load_state_dict(load_file(file))
        except (SafetensorError, RuntimeError) as error:
            raise UserError(f"{file} is damaged or of another network ({_first_line(error)}); remove it, then give the "
                            "command of that run again, which writes it from its last checkpoint") from error
    whole = replace(export, build=lambda: network)
    return whole if block is None else inner(whole, block)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
