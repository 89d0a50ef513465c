"""From a recipe to its method, and from an earlier run to the network that it hands on."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

from safetensors.torch import load_file

from unlabeled.backbones.build import build_backbone
from unlabeled.config.read import read_recipe
from unlabeled.config.recipe import Recipe
from unlabeled.engine.build import info_from_record, method_class
from unlabeled.engine.checkpoint import disk_error
from unlabeled.engine.export import find_export, inner, open_residuals
from unlabeled.engine.steps import seed_everything
from unlabeled.errors import UserError
from unlabeled.methods.base import BackboneModule, Export, Info, Method
from unlabeled.ops.distributed import on_rank0


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


def split_source(source: str) -> tuple[Path, str | None]:
    """Split RUN or RUN:EXPORT."""
    run, colon, export = source.partition(":")
    return Path(run), export if colon else None


def load_export(source: str, *, weights: bool = True) -> Export:
    """Return an export of a run, RUN or RUN:EXPORT, with the weights that the run handed out at its end.

    weights: False leaves it at random. Raises UserError if there is no run, no such export, or it has not finished.
    """
    run, name = split_source(source)
    if not (run / "recipe.yaml").exists():
        raise UserError(f"{run} is no run: {run / 'recipe.yaml'} is missing; give RUN or RUN:EXPORT, such as "
                        "runs/simclrv2-s0:backbone+head1")
    recipe = read_recipe(run / "recipe.yaml")
    record = json.loads((run / "run.json").read_bytes())
    method = build_method(recipe, info_from_record(record["info"], recipe.train.seed), run, weights=False)
    name, block, export = find_export(method.exports(), name)
    network = export.build()
    if weights:
        file = run / "export" / f"{name}.safetensors"
        if not file.exists():
            raise UserError(f"{run} has not finished: {file} is missing; start its command again, which goes on")
        network.load_state_dict(load_file(file))
    whole = replace(export, build=lambda: network)
    return whole if block is None else inner(whole, block)


def adopt(source: str, run: Path) -> str:
    """Copy what `load_export` needs of a finished run into RUN/sources, once, and return the copy as a source.

    A source that is no finished run is returned as it is, for `load_export` to refuse.
    """
    origin, name = split_source(source)
    digest = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()
    copy = run / "sources" / f"{origin.name}-{digest[:8]}"
    if on_rank0(lambda: _copy(origin, copy)):
        return str(copy) if name is None else f"{copy}:{name}"
    return source


def _copy(origin: Path, copy: Path) -> bool:
    """Return whether the copy is there; an unfinished run is not copied, for it would stay unfinished."""
    if copy.exists() or not (origin / "DONE").exists():
        return copy.exists()
    partial = copy.with_name(f"{copy.name}.part")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for file in ("recipe.yaml", "run.json"):
            shutil.copyfile(origin / file, partial / file)
        for folder in ("export", "sources"):
            if (origin / folder).is_dir():
                shutil.copytree(origin / folder, partial / folder)
        partial.rename(copy)
    except OSError as error:
        raise disk_error(copy, error) from error
    return True
