"""unlabeled slurm."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlabeled.errors import UserError, did_you_mean, nearest

if TYPE_CHECKING:
    from unlabeled.config.jobs.slurm import SlurmSettings
    from unlabeled.config.recipe import Recipe

SUMMARY = "Print or submit the SLURM job of a command: any number of nodes, saved and queued again at its limit."
EXAMPLES = [
    "unlabeled slurm simclrv2 nodes=2 gpus=8 time=24:00:00 data.train.root=/data/imagenet submit=true",
    "unlabeled slurm evaluate linear runs/simclrv2-s0 gpus=1 after=1234 submit=true",
    "unlabeled slurm chain simclrv2-1pct nodes=4 gpus=8 submit=true",
    "unlabeled slurm sweep cifar10/simclrv2 'optim.lr.base=[1,2,4]' 'train.seed=[0,1,2]' gpus=1 at_once=4 submit=true",
    "unlabeled slurm labelmaps runs/teacher-s0 card=imagenet out=maps/imagenet gpus=1 parts=16 submit=true",
    "unlabeled slurm pack imagenet /fast/imagenet root=/data/imagenet cpus=16 parts=8 submit=true",
]
_SHARED = ("sweep", "labelmaps", "reinforce", "mine", "features", "pack")  # commands that take part=3/16
_COMMANDS = ("pretrain", "evaluate", "chain", "extract", *_SHARED)
_SETTING = re.compile(r"[A-Za-z_][\w.-]*=")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("command", metavar="RECIPE|COMMAND ...", nargs="+",
                        help=f"a recipe to pretrain, or one of {', '.join(_COMMANDS)} with its arguments. Besides the "
                        "command's own settings key=value: nodes=1, gpus=8 (per node), processes=N (per node, where it "
                        "is not one per GPU), cpus=N and mem=200G (per node), time=24:00:00, partition, account, qos, "
                        "constraint, name, logs=runs/slurm, warn=300 (seconds before the limit to save in), "
                        "after=JOB or [JOB,JOB], parts=N (jobs of an array that share the work; of a sweep one per "
                        "run), at_once=N (of these), setup='module load cuda', sbatch=[--exclusive], submit=true")
    parser.add_argument("--seeds", type=int, default=None, metavar="N", help="of chain and evaluate")
    parser.add_argument("--folds", action="store_true", help="of evaluate")


@dataclass
class _Job:
    """A script to be: the command's words, its name, and how many jobs of an array share it."""

    words: list[str]
    name: str
    parts: int | None = None


def run(arguments: argparse.Namespace) -> int:
    """Check the command as it would itself, then print its script or submit it."""
    from unlabeled.config.jobs.slurm import SlurmSettings
    from unlabeled.config.read import read_settings

    words = list(arguments.command)
    if words[0] not in _COMMANDS:
        if _SETTING.match(words[0]):
            raise UserError(f"unlabeled slurm: '{words[0]}' is no recipe; give RECIPE or COMMAND first")
        words.insert(0, "pretrain")
    own = [word for word in words if word.partition("=")[0] in SlurmSettings.model_fields and "=" in word]
    command = [word for word in words if word not in own]
    settings = read_settings("unlabeled slurm", SlurmSettings, own)
    _refuse_other_names(command)
    jobs = _jobs(command, settings, arguments.seeds, arguments.folds)
    if not settings.submit:
        print("\n".join(_script(job, settings, ["JOB_BEFORE"] if number else []) for number, job in enumerate(jobs)),
              end="")
        return 0
    return _submit(jobs, settings)


def _script(job: _Job, settings: SlurmSettings, before: Sequence[str]) -> str:
    from unlabeled.cli.sbatch import script

    return script(job.words, job.name, settings, dependencies=[*settings.dependencies(), *before], parts=job.parts)


def _submit(jobs: Sequence[_Job], settings: SlurmSettings) -> int:
    from unlabeled.cli.sbatch import submit, watching

    before: list[str] = []
    for job in jobs:
        number = submit(_script(job, settings, before), settings)
        array = f", an array of {job.parts}" if job.parts else ""
        waits = f", after {', '.join([*settings.dependencies(), *before])}" if before or settings.after else ""
        print("\n".join([f"job {number}: unlabeled {' '.join(job.words)}{array}{waits}",
                         *watching(number, job.name, settings, parts=job.parts)]))
        before = [number]
    return 0


def _refuse_other_names(command: Sequence[str]) -> None:
    """Raise UserError for what is probably meant for SLURM, but has another name here.

    Keys with dots are the recipe's, and so is what its own reader knows.
    """
    from unlabeled.config.jobs.slurm import OTHER_NAMES, SlurmSettings

    keys = [word.partition("=")[0] for word in command if _SETTING.match(word)]
    for key in keys:
        if (name := OTHER_NAMES.get(key.replace("_", "-").lower())) is not None:
            raise UserError(f"unlabeled slurm: unknown key '{key}'. Did you mean '{name}'?")
        known = _top_keys(command[0])
        near = nearest(key, SlurmSettings.model_fields, likeness=0.75)
        if known is not None and "." not in key and key not in known and near and not nearest(key, known):
            raise UserError(f"unlabeled slurm: unknown key '{key}'.{did_you_mean(near)}")


def _top_keys(command: str) -> list[str] | None:
    """Return the keys without dots of a command that trains by a recipe; None for others, whose readers say more."""
    from unlabeled.config.recipe import Recipe

    own = {"pretrain": ["run", "fresh"], "sweep": ["run", "part"], "chain": ["run", "steps"]}.get(command)
    return None if own is None else [*Recipe.model_fields, *own]


def _jobs(command: list[str], settings: SlurmSettings, seeds: int | None, folds: bool) -> list[_Job]:
    """Return the jobs of a command, once it is checked. Raises UserError as the command would."""
    name, words = command[0], [word for word in command[1:] if not _SETTING.match(word)]
    given = [word for word in command[1:] if _SETTING.match(word)]
    if seeds is not None and name not in ("chain", "evaluate"):
        raise UserError(f"--seeds has no effect with {name}; it belongs to chain and evaluate")
    if folds and name != "evaluate":
        raise UserError(f"--folds has no effect with {name}; it belongs to evaluate")
    if settings.parts is not None and name not in _SHARED:
        raise UserError(f"'parts' has no effect with {name}; it belongs to {', '.join(_SHARED)}")
    count = {"evaluate": 2, "features": 2, "pack": 2}.get(name, 1)
    if len(words) != count:
        raise UserError(f"unlabeled slurm {name}: {count} argument{'s' * (count > 1)} before the settings, given "
                        f"{len(words)}; 'unlabeled {name} --help' says which")
    suffix = [*([] if seeds is None else ["--seeds", str(seeds)]), *(["--folds"] if folds else [])]
    if name == "chain":
        return _steps(words[0], given, settings, suffix)
    job = _Job([name, *words, *given, *suffix], settings.name or _name(name, words), settings.parts)
    if name == "pretrain":
        job.words += _checked_recipe(words[0], given, settings)
    elif name == "sweep":
        from unlabeled.cli.sweep import read

        sweep, _, _ = read(words[0], given)
        for cell in sweep.cells:
            _refuse_unequal(sweep.read(cell), settings)
        job.words.append(f"train.processes={settings.world}")
        job.parts = settings.parts or len(sweep.cells)
    elif name == "evaluate":
        from unlabeled.config.read import read_protocol

        read_protocol(words[0], [text for text in given if not text.startswith("out=")])
    else:
        _CHECKS.get(name, lambda given: None)(given)
    return [job]


def _name(command: str, words: Sequence[str]) -> str:
    """Return a name for the job: what is done to what."""
    first = re.sub(r"[^\w.+-]+", "-", words[0].removesuffix(".yaml").removeprefix("recipes/")).strip("-")
    return f"{command}-{first}"[:60]


def _checked_recipe(recipe: str, given: list[str], settings: SlurmSettings) -> list[str]:
    """Check a recipe and return what is added to its settings: how many processes must come together."""
    from unlabeled.cli.arguments import take
    from unlabeled.config.read import read_recipe

    overrides, _ = take(given, {"run": None, "fresh": None})
    read = read_recipe(recipe, overrides, check_files=True)
    if read.train.processes not in (None, settings.world):
        raise UserError(f"train.processes asks for {read.train.processes} processes, but {settings.nodes} nodes of "
                        f"{settings.per_node} are {settings.world}; give nodes and gpus that fit")
    _refuse_unequal(read, settings)
    return [f"train.processes={settings.world}"]


def _refuse_unequal(recipe: Recipe, settings: SlurmSettings) -> None:
    """Raise UserError for a batch that the processes cannot share: the job would wait in the queue to say so."""
    micros = settings.world * recipe.train.grad_accum
    for stream, data in recipe.data.streams().items():
        if data.batch % micros:
            raise UserError(f"data.{stream}.batch {data.batch} does not divide into {settings.world} processes x "
                            f"{recipe.train.grad_accum} micro-batches; choose nodes and gpus that divide it")


def _steps(name: str, given: list[str], settings: SlurmSettings, suffix: list[str]) -> list[_Job]:
    """Return a job per step of a chain, each to follow the one before."""
    from unlabeled.cli.chain import read
    from unlabeled.evaluation.chain import check

    chain, _, chosen = read(name, given)
    check(chain)
    steps = [step.name for step in chain.steps if chosen is None or step.name in chosen]
    rest = [text for text in given if not text.startswith("steps=")]
    title = settings.name or _name("chain", [name])
    return [_Job(["chain", name, *rest, f"steps={step}", *suffix], f"{title}-{step}") for step in steps]


def _pass(module: str, settings: str) -> Callable[[list[str]], None]:
    def check(given: list[str]) -> None:
        from importlib import import_module

        from unlabeled.config.read import read_settings

        read_settings("unlabeled slurm", getattr(import_module(module), settings), given)

    return check


_CHECKS: dict[str, Callable[[list[str]], None]] = {
    "labelmaps": _pass("unlabeled.config.passes.labelmaps", "LabelmapSettings"),
    "reinforce": _pass("unlabeled.config.passes.reinforce", "ReinforceSettings"),
    "mine": _pass("unlabeled.config.passes.mining", "MineSettings"),
    "features": _pass("unlabeled.config.passes.features", "FeatureSettings"),
    "pack": _pass("unlabeled.config.pack", "PackSettings"),
}
