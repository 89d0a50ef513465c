"""Run a chain: every step trains in its own folder, goes on where it was interrupted, and is measured when finished."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from unlabeled.config.chain import Chain, Link
from unlabeled.config.protocols.vectors import Trained
from unlabeled.config.read import read_protocol, read_recipe
from unlabeled.config.recipe import Recipe
from unlabeled.engine.restore import load_run
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.evaluation.kept import kept_reports, measured
from unlabeled.evaluation.setup import open_splits
from unlabeled.evaluation.trained import recipe_on
from unlabeled.ops.distributed import on_rank0, rank
from unlabeled.report.report import Report
from unlabeled.report.seeds import print_seeds


def check(chain: Chain) -> None:
    """Read every recipe and protocol of the chain. Raises UserError for the first step that has a mistake."""
    values = {step.name: f"RUN-OF-{step.name}" for step in chain.steps} | {"seed": "0"}
    for step in chain.steps:
        if step.recipe is not None:
            read_recipe(step.recipe, step.filled(values))
        else:
            _protocol(step, values)
        for protocol in step.evaluate:
            read_protocol(protocol)


def run_chain(chain: Chain, folder: Path, seeds: Sequence[int], names: Sequence[str] | None = None) -> int:
    """Run the steps in FOLDER/NAME, those that depend on the seed in FOLDER/NAME-sSEED, and print one table.

    names: of the steps to run, if not all; of the others, finished or not, the table has what is there.
    Returns 0, or the exit code of a step that was interrupted. Raises UserError for bad input.
    """
    check(chain)
    runs: dict[tuple[str, int], Path] = {}
    reports: dict[str, list[list[Report]]] = {}
    for step, seeded in chain.per_seed():
        for seed in seeds:
            run = runs[step.name, seed] = folder / (f"{step.name}-s{seed}" if seeded else step.name)
            if not seeded and seed != seeds[0]:
                continue
            if names is not None and step.name not in names:
                kept = on_rank0(partial(kept_reports, run, step.evaluate))
                reports.setdefault(step.name, []).append(kept or [])
                continue
            values = {name: str(path) for (name, of), path in runs.items() if of == seed} | {"seed": str(seed)}
            result = train(_recipe(step, values), run)
            if not result.finished:
                return result.exit_code
            reports.setdefault(step.name, []).append(measured(run, step.evaluate))
    if rank() == 0:
        print_seeds(reports, "step")
    return 0


def _recipe(step: Link, values: dict[str, str]) -> Recipe:
    if step.recipe is not None:
        return read_recipe(step.recipe, step.filled(values), check_files=True)
    protocol = _protocol(step, values)
    restored = load_run(Path(values[step.of or ""]))
    return recipe_on(protocol, restored, open_splits(protocol, restored).train)


def _protocol(step: Link, values: dict[str, str]) -> Trained:
    protocol = read_protocol(step.protocol or "", step.filled(values))
    if not isinstance(protocol, Trained):
        raise UserError(f"step '{step.name}': protocol '{step.protocol}' does not train; name it under 'evaluate'")
    return protocol
