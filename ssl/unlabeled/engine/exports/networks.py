"""Networks to take away: safetensors files that load without this package."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from safetensors.torch import save
from torch import Tensor, nn

from unlabeled.backbones.build import loading_lines
from unlabeled.backbones.elastic.network import ElasticNetwork
from unlabeled.backbones.elastic.sizes import Size, size_of
from unlabeled.backbones.intermediate import Intermediate
from unlabeled.config.recipe import Recipe
from unlabeled.config.sources import sized
from unlabeled.config.tables import BACKBONE_OPTIONS
from unlabeled.engine.exports.preparation import preparation, preparing_lines
from unlabeled.engine.run.folder import RunFolder
from unlabeled.errors import UserError, did_you_mean, nearest
from unlabeled.methods.base import Export, Method

_NEARLY_ZERO = 1e-4  # factors behind branches begin at 1e-6 to 1e-5, where they begin near zero


class Inside(NamedTuple):
    """What is taken of an export's network: a sub-network of an elastic one, and a block of that, or None of each."""

    size: Size | None
    block: str | None


def write_exports(folder: RunFolder, recipe: Recipe, method: Method, update: int,
                  classes: Sequence[str] | None = None) -> str:
    """Write `export/NAME.safetensors` and `.json` for every export; return the lines that load the backbone.

    They also prepare images for it, as it was evaluated. Of a method that hands out classifiers alone there are none.
    classes: names of the data's, which the files of classifiers
    state, or else its teacher's.
    """
    exports = method.exports()
    names = classes or method.taught_names
    for name, export in exports.items():
        content = weights_file(export.build().state_dict())
        folder.write_bytes(f"export/{name}.safetensors", content)
        about = {
            "method": recipe.method.name,
            "backbone": recipe.backbone.model_dump(),
            "gives": export.gives,
            "input": dataclasses.asdict(export.input),
            "preparation": preparation(export.input),
            "update": update,
            "seed": recipe.train.seed,
            **({"classes": list(names)} if names and export.gives == "logits" else {}),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        folder.write(f"export/{name}.json", json.dumps(about, indent=1))
    shown = "backbone" if "backbone" in exports else next(iter(exports))
    if exports[shown].gives == "logits":
        return ""
    loading = loading_lines(recipe.backbone, str(folder.export / f"{shown}.safetensors"))
    image = exports[shown].input
    return f"{loading}\n\n{preparing_lines(image)}"


def weights_file(state: Mapping[str, Tensor]) -> bytes:
    """Return the content of a safetensors file of these tensors."""
    return save({key: value.detach().cpu().contiguous() for key, value in state.items()})


def find_export(exports: Mapping[str, Export], name: str | None) -> tuple[str, Inside | None, Export]:
    """Return the name of an export, what is taken of it or None, and the whole export.

    name: EXPORT or EXPORT.BLOCK, such as backbone.layer3, or [EXPORT@]SIZE[.BLOCK], such as 384x12; None is the default
    export. Raises UserError with the nearest name, or sizes.
    """
    if name is None or name in exports:
        name = next(iter(exports)) if name is None else name
        return name, None, exports[name]
    if (part := sized(name)) is not None:
        outer, network = find_elastic(exports, part.export)
        size = size_of(part.size)
        assert size is not None
        network.grid.refuse_untrained(size)
        return outer, Inside(size, part.block), exports[outer]
    outer, _, block = name.partition(".")
    if outer not in exports:
        raise _unknown(exports, name)
    return outer, Inside(None, block), exports[outer]


def find_elastic(exports: Mapping[str, Export], name: str | None) -> tuple[str, ElasticNetwork]:
    """Return the name and a copy of the elastic network that is an export: the one named, or the first.

    Raises UserError if there is none.
    """
    if name is not None and name not in exports:
        raise _unknown(exports, name)
    for each in exports if name is None else [name]:
        network = exports[each].build()
        if isinstance(network, ElasticNetwork):
            return each, network
    others = [each for each, export in exports.items() if each != name and isinstance(export.build(), ElasticNetwork)]
    if name is not None and others:
        raise UserError(f"export '{name}' is no elastic network, so that no sizes can be taken of it; elastic: "
                        f"{', '.join(others)}")
    raise UserError(f"no export is an elastic network, so that no sizes can be taken of it (exports: "
                    f"{', '.join(exports)}); elastic backbones: {', '.join(BACKBONE_OPTIONS['size'])}")


def refuse_clips(export: Export, name: str, why: str) -> None:
    """Raise UserError if a network, which is called `name`, is for clips, where it would be shown images, and why."""
    if export.input.clip is not None:
        raise UserError(f"{name} is for clips of {export.input.clip.frames} frames, and {why}; take a network for "
                        "images")


def _unknown(exports: Mapping[str, Export], name: str) -> UserError:
    question = did_you_mean(nearest(name, exports))
    return UserError(f"the method has no export '{name}' (it has: {', '.join(exports)}).{question}")


def inner(export: Export, inside: Inside) -> Export:
    """Return the export of a part of its network: a size of it, or what ends after a block inside it."""
    if inside.size is not None:
        export = dataclasses.replace(export, build=partial(_sized, export, inside.size))
    if inside.block is None:
        return export
    block = inside.block
    return dataclasses.replace(export, build=lambda: Intermediate(export.build(), block), gives="map", names=None)


def _sized(export: Export, size: Size) -> ElasticNetwork:
    network = export.build()
    assert isinstance(network, ElasticNetwork)  # `find_export` has looked
    part = network.part(size)
    part.grad_checkpointing = network.grad_checkpointing
    return part


def open_residuals(export: Export) -> Export:
    """Return an untrained export with the scales that start at or near zero set to one.

    Residual branches that end in a zero-initialised norm (arXiv 1706.02677 section 5.1), or in factors of 1e-5 (arXiv
    2103.17239), are closed at the start of training. Such a network is hardly deeper than its stem, and a straw man as
    a baseline: on digits it scores up to 30 points below the same random weights with open branches.
    """

    def build() -> nn.Module:
        network = export.build()
        for module in network.modules():
            scale = getattr(module, "weight", None)
            if isinstance(scale, nn.Parameter) and scale.ndim == 1 and not bool(scale.any()):
                nn.init.ones_(scale)
        for name, factor in network.named_parameters():
            if name.rpartition(".")[2].startswith("gamma") and bool((factor.abs() < _NEARLY_ZERO).all()):
                nn.init.ones_(factor)
        return network

    return dataclasses.replace(export, build=build)
