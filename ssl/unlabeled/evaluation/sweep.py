"""Run a sweep: every combination in a folder of its own, and one table of those that are finished."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from unlabeled.config.jobs.sweep import Cell, Sweep
from unlabeled.config.passes.shared import Part
from unlabeled.engine.run.folder import RunFolder
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.evaluation.kept import finished_after, kept_reports, measured
from unlabeled.ops.distributed import on_rank0, rank
from unlabeled.ops.machine.files import write_atomically
from unlabeled.report.sweep import Row, print_sweep, sweep_csv

TABLE = "sweep.csv"


def run_sweep(sweep: Sweep, folder: Path, part: Part) -> int:
    """Train and measure the runs of one part in FOLDER/NAME, then print what is finished of all, and write sweep.csv.

    Finished runs are left alone, others go on; one that cannot be trained, for its loss became NaN perhaps, does not
    take the others along. Returns 0, or the exit code of a run that was interrupted. Raises UserError, when all others
    are done, with the first line of what each such run said.
    """
    mine = part.of(len(sweep.cells))
    problems: list[str] = []
    for number in mine:
        cell = sweep.cells[number]
        run, recipe = folder / cell.name, sweep.read(cell)
        if rank() == 0:
            print(f"run {number + 1} of {len(sweep.cells)}: {' '.join(cell.overrides)}", flush=True)
        if on_rank0(partial(kept_reports, run, recipe.eval.at_end)) is not None:
            continue
        try:
            result = train(recipe, run)
            if not result.finished:
                return result.exit_code
            measured(run, recipe.eval.at_end)
        except UserError as error:
            if rank() == 0:
                print(error, file=sys.stderr, flush=True)
            problems.append(f"  {cell.name}: {str(error).partition(chr(10))[0]}")
    on_rank0(lambda: _tell(sweep, folder))
    if problems:
        raise UserError("\n".join([f"{len(problems)} of {len(mine)} runs ended with an error:", *problems]))
    return 0


def _tell(sweep: Sweep, folder: Path) -> None:
    """Print the table of the finished runs, and write it; runs in other jobs may be missing."""
    rows = [row for cell in sweep.cells if (row := _row(sweep, cell, folder / cell.name)) is not None]
    if len(rows) < len(sweep.cells):
        print(f"{len(rows)} of {len(sweep.cells)} runs are finished; the same command runs the others and says all",
              flush=True)
    if rows:
        write_atomically(folder / TABLE, lambda file: file.write(sweep_csv(rows).encode()))
        print_sweep(rows)
        print(f"every run by itself: {folder / TABLE}", flush=True)


def _row(sweep: Sweep, cell: Cell, run: Path) -> Row | None:
    """Return the numbers of a finished run: of its protocols or, if it has none, the last loss; None if it is not."""
    protocols = sweep.read(cell).eval.at_end
    reports = kept_reports(run, protocols)
    if reports is None or finished_after(run) is None:
        return None
    numbers = {f"{report.name} {number.name}": float(number.network["value"])
               for report in reports for number in report.numbers}
    return Row(cell.name, cell.values, numbers or _health(reports) or _last_loss(run))


def _health(reports: list) -> dict[str, float]:
    return {f"health {name}": value for report in reports for name, value in report.health.get("network", {}).items()}


def _last_loss(run: Path) -> dict[str, float]:
    lines = RunFolder(run).read_lines(run / "metrics.jsonl")
    losses = [float(line["loss"]) for line in lines if isinstance(line.get("loss"), int | float)]
    return {"last loss": losses[-1]} if losses else {}
