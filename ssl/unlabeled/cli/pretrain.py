"""unlabeled pretrain."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from unlabeled.cli.arguments import first_process, run_folder, take, truth
from unlabeled.errors import UserError

if TYPE_CHECKING:
    from unlabeled.config.recipe import Recipe

SUMMARY = "Pretrain a backbone by a recipe; the same command goes on with a run that was cut short."
EXAMPLES = [
    "unlabeled pretrain demo/simclrv2",
    "unlabeled pretrain cifar10/simclrv2 optim.weight_decay=1e-6 train.seed=1 run=runs/trial",
    "accelerate launch pretrain.py recipes/simclrv2.yaml data.train.root=/data/imagenet",
]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("recipe", metavar="RECIPE", help="name or path of a recipe (unlabeled recipes lists them)")
    parser.add_argument(
        "settings", metavar="key=value", nargs="*",
        help="overrides of the recipe; run=FOLDER (default runs/RECIPE-sSEED) names the run's folder, "
        "fresh=true sets an earlier run there aside and starts anew",
    )
    parser.add_argument("--print", action="store_true", dest="show", help="print the resolved recipe and stop")
    parser.add_argument("--dry-run", action="store_true", help="build everything, estimate the memory per GPU, try two "
                        "updates, report memory and images/s")
    parser.add_argument("--images", metavar="N", type=int, help="of a dry run: try updates of N images per process "
                        "only; the estimate is for the recipe's batch and, if it is set, train.processes")


def run(arguments: argparse.Namespace) -> int:
    """Read the recipe, train, and run the protocols that it lists for its end."""
    overrides, own = take(arguments.settings, {"run": None, "fresh": "false"})
    # a job that has queued itself again goes on with what it has begun
    fresh = truth("fresh", own["fresh"]) and os.environ.get("SLURM_RESTART_COUNT", "0") == "0"
    if arguments.images is not None and not (arguments.dry_run and arguments.images > 0):
        raise UserError(f"--images {arguments.images}: a number of images above 0, with --dry-run, which tries updates "
                        "of so many; for training set data.train.batch")

    from unlabeled.config.files import default_run, find
    from unlabeled.config.read import read_recipe

    named_run = run_folder(own["run"]) if own["run"] else None

    def run_of(seed: int) -> Path:
        return named_run or default_run(find("recipes", arguments.recipe), seed)

    recipe = read_recipe(arguments.recipe, overrides, check_files=True, run_of=None if fresh else run_of)
    if arguments.show:
        print(resolved(recipe), end="")
        return 0
    folder = named_run or run_folder(str(run_of(recipe.train.seed)))
    for name, one in ((name, one) for name, stream in recipe.data.streams().items() for one in stream.sets()):
        if one.root is not None and os.path.realpath(one.root) == os.path.realpath(folder):
            raise UserError(f"run={folder} is the folder of data.{name}.root: the run's pictures would become "
                            "images of it; name another folder, which may lie below it")

    from unlabeled.engine.train import train

    result = train(recipe, folder, fresh=fresh, dry_run=arguments.dry_run, images=arguments.images)
    if result.finished:
        _report(recipe, folder)
    return result.exit_code


def resolved(recipe: Recipe) -> str:
    """Return the recipe as YAML, with what follows from it and from the size of its data as comments."""
    from unlabeled.config.yaml.write import to_yaml
    from unlabeled.data.streams import open_streams
    from unlabeled.engine.build import method_class
    from unlabeled.engine.plan import describe, make_plan

    clock = method_class(recipe).clock
    world = int(os.environ.get("WORLD_SIZE", "1"))
    batch = recipe.data.streams()[clock].batch
    notes: dict[tuple[str | int, ...], str] = {
        ("optim", "lr"): f"peak {recipe.optim.lr.peak(batch):g} at {batch} images per update",
        ("data", clock, "batch"): f"{batch // world} per process with {world} process{'es' * (world > 1)}",
    }
    try:
        plan = make_plan(recipe, clock, len(open_streams(recipe)[clock].source), world)
    except UserError as error:  # the recipe can be shown where its data is not
        lines = ["lengths in updates are not known here:", *str(error).splitlines()]
    else:
        lines = describe(plan, recipe)
        notes["optim", "warmup_epochs"] = f"{plan.curve.warmup} updates"
        notes["train", "updates" if recipe.train.updates else "epochs"] = (
            f"{plan.total} updates, {plan.updates_per_epoch} per epoch"
        )
    return "".join(f"# {line}\n" for line in lines) + to_yaml(recipe, notes)


def _report(recipe: Recipe, folder: Path) -> None:
    from unlabeled.evaluation.evaluate import evaluate_many
    from unlabeled.report.curves import write_curves

    try:
        if recipe.eval.at_end:
            evaluate_many(recipe.eval.at_end, folder)
    except UserError as error:
        raise UserError(f"{error}\nThe training itself is finished and kept in {folder}: 'unlabeled evaluate PROTOCOL "
                        f"{folder} KEY=VALUE' takes settings of protocols, eval.at_end=[] leaves them out") from None
    finally:  # a protocol that cannot be run takes nothing else along
        if first_process():
            print(f"curves: {write_curves(folder)}")
