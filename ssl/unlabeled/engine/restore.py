"""From a run folder back to its network; or a public network, as if it were one of a run."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unlabeled.config.base.optim import LearningRate, Optim
from unlabeled.config.read import read_run_recipe
from unlabeled.config.recipe import Data, MethodConfig, Recipe, Train
from unlabeled.config.sources import Public, public
from unlabeled.engine.build import stored_info
from unlabeled.engine.method import build_method
from unlabeled.engine.public.networks import Opened, open_public
from unlabeled.engine.run.checkpoint import read_about, read_checkpoint
from unlabeled.engine.run.folder import RunFolder
from unlabeled.engine.run.same_recipe import differences, kept_recipe
from unlabeled.engine.run.sources import public_digest
from unlabeled.engine.steps import seed_everything
from unlabeled.errors import UserError
from unlabeled.methods.base import Export, Method
from unlabeled.ops.distributed import rank


@dataclass(frozen=True)
class Restored:
    """A method with the weights of `update`, and the run that it comes from.

    public: the name of a public network, which has no run: `run` is then the folder for what is made of it, and the
    recipe one without data.
    """

    recipe: Recipe
    method: Method
    update: int
    run: Path
    public: str | None = None

    @property
    def name(self) -> str:
        """What the network is called in reports."""
        return self.public or str(self.run)

    @property
    def moment(self) -> str:
        """When in its training the network was taken, to be said behind its export; nothing of a public one."""
        return "" if self.public else f", update {self.update}"

    @property
    def train_seed(self) -> int | None:
        """The seed of its training; None if it is not known."""
        return None if self.public else self.recipe.train.seed


class PublicNetwork(Method):
    """What is known of a public network: its exports."""

    def __init__(self, exports: dict[str, Export]) -> None:
        super().__init__()
        self._exports = exports

    def exports(self) -> dict[str, Export]:
        """The network without its classifier and, where there is one, with it."""
        return self._exports


def load_run(path: Path, *, random_init: bool = False, device: torch.device | str = "cpu", out: Path | None = None,
             ) -> Restored:
    """Load a run folder's newest good checkpoint, the checkpoint file given, or a public network.

    path: of a run, or timm:NAME[@FILE] or torchvision:NAME[@FILE]. random_init: weights of update 0. out: where results
    on a public network go, None: evaluations/NAME-HASH. Raises UserError if there is no run or no readable checkpoint,
    and as `open_public` does.
    """
    named = public(str(path))
    if named is not None:
        opened = open_public(named, weights=not random_init)
        exports = _drawn_once(opened.exports) if random_init else opened.exports
        return Restored(_without_data(named, opened), PublicNetwork(exports), 0, out or results_of(named), str(named))
    run = path if path.is_dir() else path.parent.parent
    if not (run / "recipe.yaml").exists():
        file = run / "recipe.yaml"
        if (run / "run.json").exists():
            raise UserError(f"{file} is missing; give the run's own command again, which writes it anew")
        raise UserError(f"{path} is no run: {file} is missing; give the folder of a run, or a checkpoint in one")
    recipe = read_run_recipe(run)
    method = build_method(recipe, stored_info(run, recipe), run, weights=not random_init, trained=True)
    update = 0
    if not random_init:
        update = _load_weights(method, recipe, run, None if path.is_dir() else path)
    return Restored(recipe, method.to(device).eval(), update, run)


def results_of(named: Public) -> Path:
    """Return the folder, below the working one, for what is made of a public network; other weights have another."""
    digest = public_digest(named) or hashlib.sha256(str(named).encode()).hexdigest()
    return Path("evaluations") / f"{named.library}-{named.name}-{digest[:8]}"


def _drawn_once(exports: dict[str, Export]) -> dict[str, Export]:
    """Return exports of random weights that are the same in every call and process."""
    seed_everything(0, "init")
    return {name: replace(export, build=partial(copy.deepcopy, export.build())) for name, export in exports.items()}


def _without_data(named: Public, opened: Opened) -> Recipe:
    """Return a recipe that says of a public network what is known: who trained it how on which data is not."""
    return Recipe(method=MethodConfig(name=named.library), backbone=opened.backbone, data=Data(),
                  optim=Optim(name="sgd", lr=LearningRate(base=1)), train=Train(updates=1))


def _load_weights(method: Method, recipe: Recipe, run: Path, checkpoint: Path | None) -> int:
    """Load a checkpoint of the run, or its newest good one, into `method`, and return after how many updates it was."""
    if checkpoint is None:
        checkpoints = RunFolder(run).saved_states()
        found, passed = checkpoints.load_newest()
        for message in passed if rank() == 0 else ():
            print(f"{message}; taking the one before")
        if found is None or checkpoints.loaded is None:
            first = recipe.train.checkpoint_every
            when = f"; its first comes after {first} updates" if first else ""
            raise UserError(f"{run} has no checkpoint yet{when}")
        state, checkpoint = found, checkpoints.loaded
    else:
        state = read_checkpoint(checkpoint)
    kept = kept_recipe(read_about(checkpoint), checkpoint)
    lines = [] if kept is None else differences(kept, recipe.model_dump(mode="json"), run, places=False)
    if lines:
        own = run / "recipe.yaml"
        raise UserError(f"checkpoint {checkpoint} is of another recipe than {own}:\n" + "\n".join(lines))
    load_state(method, state, checkpoint)
    update: int = state["update"]
    return update


def load_state(method: Method, state: dict[str, Any], where: Path) -> None:
    """Load a checkpoint's state into `method`. Raises UserError, naming `where` it is from, if it is of another one."""
    try:
        method.load_state_dict(state["method"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        first = str(error).strip().partition("\n")[2].strip().partition("\n")[0] or error
        raise UserError(f"the checkpoint in {where} does not fit the method of the run's recipe ({first}); it belongs "
                        "to another run, or to another version of this package") from error
