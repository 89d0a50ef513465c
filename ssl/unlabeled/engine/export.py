"""Networks to take away: safetensors files that load without this package."""

from __future__ import annotations

import dataclasses
import json

from safetensors.torch import save

from unlabeled.backbones.build import loading_lines
from unlabeled.config.recipe import Recipe
from unlabeled.engine.run_folder import RunFolder
from unlabeled.methods.base import Method


def write_exports(folder: RunFolder, recipe: Recipe, method: Method, update: int) -> str:
    """Write `export/NAME.safetensors` and `.json` for every export; return the lines that load the backbone."""
    for name, export in method.exports().items():
        state = {key: value.detach().cpu().contiguous() for key, value in export.build().state_dict().items()}
        folder.write_bytes(f"export/{name}.safetensors", save(state))
        about = {
            "method": recipe.method.name,
            "backbone": recipe.backbone.model_dump(),
            "gives": export.gives,
            "input": dataclasses.asdict(export.input),
            "update": update,
            "seed": recipe.train.seed,
        }
        folder.write(f"export/{name}.json", json.dumps(about, indent=1))
    return loading_lines(recipe.backbone, str(folder.export / "backbone.safetensors"))
