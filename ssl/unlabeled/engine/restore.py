"""From a run folder back to its network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from unlabeled.config.read import read_recipe
from unlabeled.config.recipe import Recipe
from unlabeled.engine.build import info_from_record
from unlabeled.engine.checkpoint import Checkpoints, read_checkpoint
from unlabeled.engine.method import build_method
from unlabeled.errors import UserError
from unlabeled.methods.base import Method


@dataclass(frozen=True)
class Restored:
    """A method with the weights of `update`, and the run that it comes from."""

    recipe: Recipe
    method: Method
    update: int
    run: Path


def load_run(path: Path, *, random_init: bool = False, device: torch.device | str = "cpu") -> Restored:
    """Load a run folder's newest good checkpoint, or the checkpoint file given; random_init: its weights at update 0.

    Raises UserError if there is no run or no readable checkpoint.
    """
    run = path if path.is_dir() else path.parent.parent
    if not (run / "recipe.yaml").exists():
        missing = run / "recipe.yaml"
        raise UserError(f"{path} is no run: {missing} is missing; give the folder of a run, or a checkpoint in one")
    recipe = read_recipe(run / "recipe.yaml")
    record = json.loads((run / "run.json").read_bytes())
    method = build_method(recipe, info_from_record(record["info"], recipe.train.seed), run, weights=not random_init)
    update = 0
    if not random_init:
        if path.is_dir():
            state, _ = Checkpoints(run / "checkpoints", recipe.train.keep).load_newest()
        else:
            state = read_checkpoint(path)
        if state is None:
            first = recipe.train.checkpoint_every
            raise UserError(f"{run} has no checkpoint yet; its first comes after {first} updates")
        method.load_state_dict(state["method"])
        update = state["update"]
    return Restored(recipe, method.to(device).eval(), update, run)
