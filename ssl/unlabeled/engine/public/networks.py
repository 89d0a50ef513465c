"""Networks of other libraries as exports: timm:NAME[@FILE], torchvision:NAME[@FILE]."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from unlabeled.config.recipe import Backbone
from unlabeled.config.sources import Public
from unlabeled.engine.public.files import CONFIG, State, Weights, read_weights
from unlabeled.engine.public.libraries import Library, library_of
from unlabeled.engine.public.match import Match, match
from unlabeled.errors import UserError
from unlabeled.methods.base import Export, Input

BACKBONE, CLASSIFIER = "backbone", "classifier"  # as methods name their exports
_USUAL = {"input_size": (3, 224, 224), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_CONTAINERS = ("", "state_dict_ema", "model_ema", "teacher", "state_dict", "model", "module", "model_state_dict")


@dataclass(frozen=True)
class Opened:
    """A network of another library: exports `backbone` and, where it has one, `classifier`.

    backbone: what builds it in a recipe.
    """

    exports: dict[str, Export]
    backbone: Backbone


def open_public(named: Public, *, weights: bool = True, options: Mapping[str, Any] | None = None) -> Opened:
    """Open a network. weights: False leaves it at random; options: of its constructor, as `backbone.options`.

    Its classifier has as many classes as the file. Raises UserError, with the cure, for an unknown network, weights
    that cannot be had or read, and those of another network, of which the first tensors that do not fit are named. A
    classifier that does not fit is refused when it is built.
    """
    library = library_of(named, options or {})
    if named.file is None and not weights:
        content = Weights({})
        classes = int(library.config.get("num_classes") or len(library.config.get("label_names") or ()))
    else:
        content = read_weights(named.file) if named.file else Weights(library.published())
        found = _fitting(library, content)
        content = Weights(found.inside, content.config)
        classes = _classes(library, found)
    config = {**_USUAL, **library.config, **_known(content.config)}
    image = _input(library, config)
    state = content.state if weights else None
    exports = {BACKBONE: Export(partial(_built, library, state, 0), "vector", image)}
    if classes:
        names = _names(named, library, content, classes)
        exports[CLASSIFIER] = Export(partial(_built, library, state, classes), "logits", image, names)
    return Opened(exports, library.backbone)


def published_file(named: Public) -> bytes:
    """Return the weights that a library publishes as a safetensors file, which says what is known of the network."""
    library = library_of(named, {})
    state = {name: value.contiguous() for name, value in library.published().items()}
    return save(state, metadata={CONFIG: json.dumps({"architecture": named.architecture, **library.config})})


def _fitting(library: Library, content: Weights) -> Match:
    """Match a file with a network, as the file is or else as the library converts it. Raises UserError."""
    with torch.device("meta"):  # names and shapes alone
        wanted = library.build().state_dict()
    classifier, where = library.classifier(), str(library.named)
    try:
        found = match(content.state, wanted, classifier, where)
        if found.fits:
            return found
        below = f" below '{found.prefix}'" if found.prefix else ""
        problem = (f"{where}: the file{below} does not hold {library.named.architecture}; is it of another network? "
                   f"Tensors that do not fit: {found.problems()}")
    except UserError as error:
        problem = str(error)
    for conversion in library.conversions():
        for container in _CONTAINERS:
            converted = _converted(conversion, content.state, container, library)
            if converted:
                try:
                    found = match(converted, wanted, classifier, where)
                except UserError:
                    continue
                if found.fits:
                    return found
    stated = str(content.config.get("architecture", "")).partition(".")[0]
    if stated not in ("", library.named.architecture):
        problem = f"{where}: the file says that it is of '{stated}'; give timm:{stated}@FILE"
    raise UserError(problem)


def _converted(conversion: Callable[..., Any], state: State, container: str, library: Library) -> State:
    """Return the tensors below a container as the library's own function makes them from the authors' names."""
    below = f"{container}." if container else ""
    inside = {name.removeprefix(below): value for name, value in state.items() if name.startswith(below)}
    try:
        converted = conversion(inside, library.build()) if inside else {}
    except Exception:  # made for files of one form, it stumbles over all others
        return {}
    return dict(converted) if isinstance(converted, Mapping) else {}


def _classes(library: Library, found: Match) -> int:
    """Return how many classes the classifier of a file has, 0 if there is none."""
    first = next(iter(library.classifier()), None)
    weight = found.inside.get(f"{first}.weight")
    return 0 if weight is None or weight.ndim < 2 else len(weight)


def _built(library: Library, state: State | None, classes: int) -> nn.Module:
    """Build a copy of its own in evaluation mode. Raises UserError for a classifier that does not fit."""
    network = library.build(classes)
    if state is not None:
        wanted = network.state_dict()
        found = match(state, wanted, () if classes else library.classifier(), str(library.named))
        if not found.fits:
            raise UserError(f"{library.named}: the classifier of the file does not fit the network's: "
                            f"{found.problems()}")
        wanted.update((name, value) for name, value in found.inside.items() if name in wanted)
        network.load_state_dict(wanted)  # with the versions of modules that it holds beside the tensors
    return network.eval()


def _input(library: Library, config: Mapping[str, Any]) -> Input:
    size = library.backbone.options.get("img_size") or config["input_size"][-1]
    return Input(int(size), tuple(map(float, config["mean"])), tuple(map(float, config["std"])))


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a file's own configuration says of its images, where that has the form of timm's."""
    return {key: config[key] for key in _USUAL
            if isinstance(config.get(key), list | tuple) and len(config[key]) == len(_USUAL[key])}


def _names(named: Public, library: Library, content: Weights, classes: int) -> list[str] | None:
    """Return the names of the classes that the file states, or the library of its own weights; None if nobody does."""
    stated = content.config.get("label_names") or (library.config.get("label_names") if named.file is None else None)
    if not isinstance(stated, list | tuple) or len(stated) != classes:
        return None
    return [str(name) for name in stated]
