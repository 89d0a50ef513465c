"""From a recipe to its method, and from an earlier run to the network that it hands on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unlabeled.backbones.build import build_backbone, recompute_activations
from unlabeled.backbones.drops import draw_for_the_global_batch
from unlabeled.backbones.sizes import refuse_images, try_image
from unlabeled.config.read import read_run_recipe
from unlabeled.config.recipe import Backbone, Recipe
from unlabeled.config.sources import public, split_source
from unlabeled.engine.build import method_class, stored_info
from unlabeled.engine.exports.classes import export_classes
from unlabeled.engine.exports.inflated import inflated
from unlabeled.engine.exports.networks import find_elastic, find_export, inner, open_residuals, refuse_clips
from unlabeled.engine.public.networks import BACKBONE, CLASSIFIER, open_public
from unlabeled.engine.run.sources import adopt, as_given, refuse_bad_export
from unlabeled.engine.steps import seed_everything
from unlabeled.errors import UserError
from unlabeled.methods.base import BackboneModule, Export, Info, Method, Step
from unlabeled.ops.drop_path import Rows


def build_method(recipe: Recipe, info: Info, run: Path | None = None, *, weights: bool = True, trained: bool = False,
                 ) -> Method:
    """Build the method with its initial weights, the same on every rank.

    run: its folder, which keeps copies of the networks it starts from (RUN/sources), so that it stands on its own.
    weights: False leaves all networks at random, those from earlier runs too. trained: a run that has begun, whose
    networks are known to take its crops. Raises UserError for a bad source, and for a network that does not take them.
    """
    seed_everything(info.seed, "init")
    sizes, frames = {} if trained else _crop_sizes(recipe), _clip_frames(recipe)
    backbones: list[BackboneModule] = []

    def make_backbone(source: str | None = None, *, features: bool = False, options: Mapping[str, Any] | None = None,
                      ) -> BackboneModule:
        if source is None and recipe.backbone.init is None:
            network = cast(BackboneModule, build_backbone(recipe.backbone))
            network.input = network.gives = network.names = None
            refuse_images(network, sizes, recipe.backbone.name, recipe.backbone, frames=frames)
            if sizes:
                _refuse_no_vector(network, recipe.backbone.name, next(iter(sizes)), frames)
        else:
            as_trained = weights and (source is not None or recipe.backbone.init_weights)
            origin = source or recipe.backbone.init or ""
            named = origin if run is None else adopt(origin, run)
            built = _built_from(origin, recipe.backbone if source is None else options)
            with _named_as_given(origin, named):
                if source is None:
                    export = load_export(named, weights=as_trained, options=built.options if built else None)
                    export = inflated(export, recipe.backbone, named, weights=as_trained)
                else:
                    export = load_teacher(named, weights=weights, features=features, options=options)
                export = export if as_trained else open_residuals(export)
                network = cast(BackboneModule, export.build().train().requires_grad_(True))
            if built is not None and built.grad_checkpointing:
                recompute_activations(network, built.name)
            refuse_images(network, sizes, f"'{origin}'", built, frames=frames)
            network.input, network.gives = export.input, export.gives
            network.names = export.names if source is not None and weights else None
            seed_everything(info.seed, "init", len(backbones))  # what follows does not depend on how it was built
        backbones.append(network)
        return network

    method = method_class(recipe)(recipe.method, make_backbone, info)
    method.taught_names = next((network.names for network in backbones if network.names), None)
    if not trained:
        rows = Rows()
        draw_for_the_global_batch(method, backbones, sizes, rows, frames)
        _seed_every_forward(method, info, recipe.train.grad_accum, rows)
    if recipe.train.compile:
        copies = (module for module in method.modules() if hasattr(module, "gives"))  # made by deepcopy
        for network in dict.fromkeys([*backbones, *copies]):  # frozen teachers are no modules of the method
            network.compile()
    return method


@contextlib.contextmanager
def _named_as_given(origin: str, named: str) -> Iterator[None]:
    """Let what is refused of a run's copy be said of the network that the user has named."""
    try:
        yield
    except UserError as error:
        raise UserError(as_given(str(error), origin, named)) from error


def _built_from(origin: str, given: Backbone | Mapping[str, Any] | None) -> Backbone | None:
    """Return what a public network is built from, whose options a user may change; None where nobody may.

    given: the recipe's backbone, or the options that a method offers for its teacher.
    """
    named = public(origin)
    if named is None or given is None:
        return None
    return given if isinstance(given, Backbone) else Backbone(name=named.backbone, options=dict(given))


def _seed_every_forward(method: Method, info: Info, grad_accum: int, rows: Rows) -> None:
    """Let every forward pass begin with torch's global generators seeded by the update, and `rows` told of its views.

    Dropout draws one number per call from them: the same in all processes and micro-batches, which the rows tell apart.
    """
    def begin(method: nn.Module, inputs: tuple[dict[str, Tensor], Step]) -> None:
        views, step = inputs
        seed_everything(info.seed, "forward", step.update)
        rows.begin(views, step.micro * info.world + info.rank, grad_accum * info.world)

    method.register_forward_pre_hook(begin)


def _crop_sizes(recipe: Recipe) -> dict[int, str]:
    """Return the sides of the crops that the method takes, in pixels, each with the key of the recipe that says so."""
    streams = method_class(recipe).streams(recipe.method).values()
    keys = dict(reversed(list(_sizes(recipe.method.model_dump(), "method"))))  # of equal ones the first
    return {crop.size: keys.get(crop.size, "the crop's size") for stream in streams for crop in stream.crops}


def _clip_frames(recipe: Recipe) -> int | None:
    """Return the frames of the clips that the method takes; None for images."""
    clips = [stream.clips for stream in method_class(recipe).streams(recipe.method).values() if stream.clips]
    return clips[0].frames if clips else None


def _sizes(block: Any, path: str) -> Iterator[tuple[int, str]]:
    """Yield the values of all keys `size` below a block, with their paths."""
    if isinstance(block, dict):
        if isinstance(block.get("size"), int):
            yield block["size"], f"{path}.size"
        for key, part in block.items():
            yield from _sizes(part, f"{path}.{key}")
    elif isinstance(block, list | tuple):
        for number, part in enumerate(block):
            yield from _sizes(part, f"{path}.{number}")


def _refuse_no_vector(network: BackboneModule, name: str, size: int, frames: int | None) -> None:
    """Raise UserError unless the network gives a vector of `num_features` per image, as methods expect."""
    given, _ = try_image(network, size, frames)
    shape = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
    if shape != [1, network.num_features]:
        raise UserError(f"backbone '{name}' gives {shape} for one image and no vector of {network.num_features} "
                        "numbers; leave backbone.options.global_pool and the like out, or choose another network")


def load_export(source: str, *, weights: bool = True, options: Mapping[str, Any] | None = None) -> Export:
    """Return an export of a run, RUN[:EXPORT[.BLOCK]], as it was handed out at the end, or a public network.

    A size of an elastic one is RUN:SIZE, such as RUN:384x12, or RUN:EXPORT@SIZE: its plain network.

    Public ones are timm:NAME[@FILE] and torchvision:NAME[@FILE], without their classifier. weights: False leaves it at
    random. options: of a public network's constructor. Raises UserError if there is no such run, export, network or
    file, if the run has not finished, and if weights are damaged or of another network.
    """
    named = public(source)
    if named is not None:
        return _held(open_public(named, weights=weights, options=options).exports[BACKBONE])
    return _of_run(source, weights=weights)


def load_teacher(source: str, *, weights: bool = True, features: bool = False,
                 options: Mapping[str, Any] | None = None) -> Export:
    """Return the network that a source names for a teacher: with its classifier, if it has one.

    Of a run that is the export named, else its first that gives logits, else its default. features: without a
    classifier. options: as for `load_export`. Raises UserError as that does, for a classifier that does not fit, and
    for a network for clips.
    """
    named = public(source)
    if named is not None:
        exports = open_public(named, weights=weights, options=options).exports
        return _held(exports[BACKBONE] if features else exports.get(CLASSIFIER, exports[BACKBONE]))
    export = _of_run(source, weights=weights, logits=not features)
    refuse_clips(export, f"'{source}'", "teachers are shown images")
    return export


def load_elastic(run: Path, name: str | None = None) -> tuple[str, Export]:
    """Return the name of a finished run's elastic export, the one named or its first, and the export with its weights.

    Raises UserError as `load_export` does, and if there is no such elastic one.
    """
    exports = _exports(run)
    name, _ = find_elastic(exports, name)
    return name, _loaded(run, name, exports[name], weights=True)


def _of_run(source: str, *, weights: bool, logits: bool | None = None) -> Export:
    """Return an export of a run; logits: whether one that gives them is taken where none is named, None: the default.
    """
    run, name = split_source(source)
    exports = _exports(run)
    if name is None and logits is not None:
        name = next((name for name, export in exports.items() if (export.gives == "logits") == logits), None)
    name, inside, export = find_export(exports, name)
    whole = _loaded(run, name, export, weights)
    return whole if inside is None else inner(whole, inside)


def _exports(run: Path) -> dict[str, Export]:
    """Return what a run's method exports, with random weights. Raises UserError if there is no run."""
    if not (run / "recipe.yaml").exists():
        raise UserError(f"{run} is no run: {run / 'recipe.yaml'} is missing; give RUN or RUN:EXPORT, such as "
                        "runs/simclrv2-s0:backbone+head1, or timm:NAME, or timm:NAME@FILE for a file of weights")
    recipe = read_run_recipe(run)
    return build_method(recipe, stored_info(run, recipe), run, weights=False, trained=True).exports()


def _loaded(run: Path, name: str, export: Export, weights: bool) -> Export:
    """Return a run's export that is built once; weights: with those that the run has handed out."""
    network = export.build()
    if weights:
        file = refuse_bad_export(run, name)
        try:
            network.load_state_dict(load_file(file))
        except (SafetensorError, RuntimeError) as error:
            raise UserError(f"{file} is damaged or of another network ({_first_line(error)}); remove it, then give the "
                            "command of that run again, which writes it from its last checkpoint") from error
    return replace(export, build=lambda: network, names=export_classes(run, name))


def _held(export: Export) -> Export:
    """Return an export that is built once."""
    network = export.build()
    return replace(export, build=lambda: network)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
