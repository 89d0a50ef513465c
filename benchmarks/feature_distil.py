"""Feature distillation without labels on CIFAR-10: vectors, cells or both, beside teacher and untrained student.

    python -m benchmarks.feature_distil --repeats 3 --out benchmarks/results/feature-distil.md

The teacher is a plain network that was trained on all labels; the student, of half its width, sees its features alone.
`--repeats` counts the seeds of the students. Runs stay in `--folder`: a call that was cut short goes on.
`$DATA/cifar10` holds the shards.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import measure
from unlabeled.cli.main import main as unlabeled
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate import evaluate_many
from unlabeled.report.report import Report

QUESTION = ("what does a student learn of a teacher's features, without labels and without logits, and are vectors or "
            "cells of the map the better target? No bar.")
VARIANTS = {
    "pooled": [],
    "cells": ["method.pooled=0", "method.cells=1"],
    "pooled and cells": ["method.cells=1"],
    "pooled, vectors standardised by themselves": ["method.standardise=vectors"],
    "pooled, smooth L1": ["method.loss={kind: smooth_l1}"],
}
NETWORK = "backbone={{name: 'benchmarks.plain_network:plain', options: {{width: {}}}}}"
TEACHER, STUDENT = 16, 8  # widths
SCORES = ("knn20@.07", "linear")
Scores = dict[str, tuple[float, float]]  # by name: of the network, and of its random initialisation, percent


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, evaluate it, and print the table."""
    parser = measure.arguments("feature_distil", QUESTION, repeats=3)
    parser.add_argument("--updates", type=int, default=600, help="of every student (600); the teacher's are 800")
    parser.add_argument("--folder", type=Path, default=Path("runs/feature-distil"), help="where the runs are kept")
    given = parser.parse_args(arguments)
    updates, teacher_updates = (20, 20) if given.quick else (given.updates, 800)
    seeds = range(1 if given.quick else given.repeats)
    data = _data(quick=given.quick)
    teacher = given.folder / "teacher"
    with contextlib.redirect_stdout(sys.stderr):
        _train("cifar10/finetune-cpu", teacher, teacher_updates, [
            NETWORK.format(TEACHER), *data, "data.train.subset=null", "data.train.epoch_samples=null",
            "optim={name: adamw, lr: {base: 2.0e-3}, schedule: cosine, weight_decay: 0.05}",
        ])
        students: dict[str, list[Scores]] = {name: [] for name in VARIANTS}
        for seed in seeds:  # all variants of a seed before the next one, so that a call cut short has compared them
            for name, options in VARIANTS.items():
                run = given.folder / f"{name.replace(',', '').replace(' ', '-')}-s{seed}"
                _train("cifar10/feature-distil-cpu", run, updates, [
                    f"method.teacher={teacher}:backbone", NETWORK.format(STUDENT), *data, f"train.seed={seed}",
                    *options])
                students[name].append(_scores(run))
        taught = _scores(teacher)
    _tell(taught, students, updates, teacher_updates).finish(given.out)
    return 0


def _data(quick: bool) -> list[str]:
    """Return overrides of data and crops; digits where it must be quick."""
    small = ["data.train.card=digits", "method.crop={kind: padded, size: 16, pad: 4}", "data.train.batch=32"]
    return small if quick else ["method.crop={kind: padded, size: 32, pad: 4}", "data.train.batch=64"]


def _train(recipe: str, run: Path, updates: int, overrides: Sequence[str]) -> None:
    if (run / "DONE").exists():
        return
    common = [f"train.updates={updates}", "train.precision=fp32", "train.checkpoint_every=100", "eval.at_end=[]"]
    if unlabeled(["pretrain", recipe, f"run={run}", *common, *overrides]):
        raise UserError(f"{run} was not trained; see above")


def _scores(run: Path) -> Scores:
    """Return accuracies of the network and of its random initialisation, percent, by the number's name."""
    reports: list[Report] = evaluate_many(["knn", "linear"], run, ["raw_pixels=false", "export=backbone"])
    numbers = {number.name: number for report in reports for number in report.numbers}
    return {name: (numbers[name].network["value"], numbers[name].random_init["value"]) for name in SCORES}


def _tell(teacher: Scores, students: dict[str, list[Scores]], updates: int, teacher_updates: int) -> measure.Report:
    report = measure.Report("feature_distil", "Feature distillation on CIFAR-10", QUESTION)
    rows = [["teacher, trained on all labels", *(f"{teacher[name][0]:.1f}" for name in SCORES)]]
    untrained = next(iter(students.values()))
    rows.append(["student, untrained", *(_mean([scores[name][1] for scores in untrained]) for name in SCORES)])
    for variant, seeds in students.items():
        rows.append([variant, *(_mean([scores[name][0] for scores in seeds]) for name in SCORES)])
    report.table(["network", *SCORES], rows)
    report.say("Accuracy on the test images in percent, per seed, then mean ± deviation; last update. Chance: 10. "
               f"Plain networks of width {TEACHER} (teacher, {teacher_updates} updates) and {STUDENT} (students, "
               f"{updates} updates), batches of 64, AdamW. Nothing was chosen by looking at these numbers.")
    return report


def _mean(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{' / '.join(f'{v:.1f}' for v in values)}; {statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    measure.one_thread()
    sys.exit(main())
