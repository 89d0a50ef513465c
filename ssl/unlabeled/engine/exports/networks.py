"""Networks to take away: safetensors files that load without this package."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

from safetensors.torch import save
from torch import nn

from unlabeled.backbones.build import loading_lines
from unlabeled.backbones.intermediate import Intermediate
from unlabeled.config.recipe import Recipe
from unlabeled.engine.exports.preparation import preparation, preparing_lines
from unlabeled.engine.run.folder import RunFolder
from unlabeled.errors import UserError, did_you_mean, nearest
from unlabeled.methods.base import Export, Method


def write_exports(folder: RunFolder, recipe: Recipe, method: Method, update: int,
                  classes: Sequence[str] | None = None) -> str:
    """Write `export/NAME.safetensors` and `.json` for every export; return the lines that load the backbone.

    They also prepare images for it, as it was evaluated. classes: names of the data's, which the files of classifiers
    state, or else its teacher's.
    """
    exports = method.exports()
    names = classes or method.taught_names
    for name, export in exports.items():
        state = {key: value.detach().cpu().contiguous() for key, value in export.build().state_dict().items()}
        content = save(state)
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
    loading = loading_lines(recipe.backbone, str(folder.export / f"{shown}.safetensors"))
    image = exports[shown].input
    return f"{loading}\n\n{preparing_lines(image)}"


def find_export(exports: Mapping[str, Export], name: str | None) -> tuple[str, str | None, Export]:
    """Return the name of an export, the name of a block inside it or None, and the whole export.

    name: EXPORT or EXPORT.BLOCK, such as backbone.layer3; None is the default export. Raises UserError with the nearest
    name.
    """
    if name is None or name in exports:
        name = next(iter(exports)) if name is None else name
        return name, None, exports[name]
    outer, _, block = name.partition(".")
    if outer not in exports:
        question = did_you_mean(nearest(name, exports))
        raise UserError(f"the method has no export '{name}' (it has: {', '.join(exports)}).{question}")
    return outer, block, exports[outer]


def inner(export: Export, block: str) -> Export:
    """Return the export that ends after the block of that name inside its network."""
    return dataclasses.replace(export, build=lambda: Intermediate(export.build(), block), gives="map", names=None)


def open_residuals(export: Export) -> Export:
    """Return an untrained export with the scales that start at zero set to one.

    Residual branches that end in a zero-initialised norm (arXiv 1706.02677 section 5.1) are closed at the start of
    training. Such a network is hardly deeper than its stem, and a straw man as a baseline: on digits it scores up to 30
    points below the same random weights with open branches.
    """

    def build() -> nn.Module:
        network = export.build()
        for module in network.modules():
            scale = getattr(module, "weight", None)
            if isinstance(scale, nn.Parameter) and scale.ndim == 1 and not bool(scale.any()):
                nn.init.ones_(scale)
        return network

    return dataclasses.replace(export, build=build)
