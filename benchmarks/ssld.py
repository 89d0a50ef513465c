"""What SSLD without labels gives a small student, beside the same student trained on labels with as many updates."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import measure
from unlabeled.config.read import read_recipe
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate import evaluate_many

QUESTION = ("what does a student learn from a teacher without any label, beside 25 and 100 labels per class and all of "
            "them, at equal updates and views?")
OVER_25, OVER_100 = 14, 7  # bars, in points; and above all labels in the mean
CROP = "{kind: padded, size: 32, pad: 4}"
COMMON = ["train.precision=fp32", "train.checkpoint_every=1000", "eval={every: 0, at_end: []}", "data.workers=0"]
SUPERVISED = [f"method={{name: finetune, crop: {CROP}}}", "optim.exclude_decay=[]", "optim.nesterov=false"]
# what differs from the method's defaults, in rows of their own
VARIANTS = {"SSLD, teacher_bn: running": ["method.teacher_bn=running"], "SSLD, loss: soft_ce": ["method.loss=soft_ce"]}
LABELS = {"25 labels per class": "{per_class: 25, seed: %d}", "100 labels per class": "{per_class: 100, seed: %d}",
          "all labels": "null"}


def main(words: list[str] | None = None) -> int:
    """Train the teacher once, then every row for every seed; runs that are finished are not trained again."""
    given = _arguments(words)
    measure.one_thread()
    report = measure.Report("ssld", "SSLD without labels on CIFAR-10, small plain networks on a CPU", QUESTION)
    runs = Runs(given.runs, given.width, given.updates, given.batch)
    teacher = runs.supervised("teacher", "null", 0, [f"train.updates={given.teacher_updates}",
                                                     network(given.teacher_width)])
    rows: dict[str, list[float]] = {}
    variants = {"SSLD": [], **(VARIANTS if given.variants else {})}
    for seed in range(given.seeds):
        for name, more in variants.items():
            rows.setdefault(name, []).append(runs.ssld(name, more, seed))
        for name, part in LABELS.items():
            rows.setdefault(name, []).append(runs.supervised(name, part.replace("%d", str(seed)), seed))
    report.say(f"Teacher: width {given.teacher_width}, {given.teacher_updates} updates of {given.batch} on all labels, "
               f"{teacher:.1f} % of the test images. Students: width {given.width}, {given.updates} updates of "
               f"{given.batch}, the last one scored.")
    report.table(["accuracy, %", *(f"seed {seed}" for seed in range(given.seeds)), "mean"],
                 [[name, *(f"{value:.1f}" for value in values), f"{statistics.mean(values):.1f}"]
                  for name, values in rows.items()])
    report.table(["SSLD above", "points, by seed", "mean", "bar"], _margins(rows))
    report.say("Card cifar10: 50,000 training and 10,000 test images. Recipes: `cifar10/ssld-cpu`, and for labels "
               f"`cifar10/finetune-cpu`, with `{CROP}` and the networks of `benchmarks/plain_network.py`; both by SGD "
               "at 0.1, cosine. Seeds are those of training and of the labels; the teacher is one.")
    report.finish(given.out)
    return 0


def _margins(rows: dict[str, list[float]]) -> list[list[str]]:
    ours = rows["SSLD"]
    found = []
    for name, least in zip(LABELS, (OVER_25, OVER_100, 0), strict=True):
        above = [mine - theirs for mine, theirs in zip(ours, rows[name], strict=True)]
        mean = statistics.mean(above)
        found.append([name, ", ".join(f"{value:.1f}" for value in above), f"{mean:.1f}",
                      measure.bar(mean if least == 0 else min(above), at_least=least, unit=" points")])
    return found


def network(width: int) -> str:
    """Return the setting of a plain network, by the channels of the first of its four pairs of layers."""
    return f"backbone={{name: 'benchmarks.plain_network:plain', options: {{width: {width}}}}}"


class Runs:
    """Runs of the engine in one folder, each scored when it has finished."""

    def __init__(self, folder: Path, width: int, updates: int, batch: int) -> None:
        # an epoch of 4,000 images for all, within which small sets repeat
        self.folder = folder
        self.settings = [*COMMON, network(width), f"train.updates={updates}", f"data.train.batch={batch}",
                         "data.train.epoch_samples=4000"]

    def supervised(self, name: str, subset: str, seed: int, more: Sequence[str] = ()) -> float:
        """Train on the labels of a subset, null for all, and return the accuracy."""
        settings = [*SUPERVISED, f"data.train.subset={subset}", "optim.warmup_epochs=0.5", "optim.lr.base=0.1"]
        return self._run("cifar10/finetune-cpu", name, seed, [*settings, *more])

    def ssld(self, name: str, more: Sequence[str], seed: int) -> float:
        """Distil the teacher without labels and return the accuracy."""
        teacher = self.folder / "teacher-s0"
        settings = [f"method.teacher={teacher}", "optim.warmup_epochs=0.5"]
        return self._run("cifar10/ssld-cpu", name, seed, [*settings, *more])

    def _run(self, recipe: str, name: str, seed: int, more: Sequence[str]) -> float:
        run = self.folder / f"{name.replace(' ', '-').replace(',', '').replace(':', '')}-s{seed}"
        train(read_recipe(recipe, [*self.settings, f"train.seed={seed}", *more]), run)
        (scored,) = evaluate_many(["classify"], run)
        (number,) = (number for number in scored.numbers if number.name == "classifier")
        return float(number.network["value"])


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = measure.arguments_of_seeds("ssld", QUESTION, "the runs")
    parser.add_argument("--width", type=int, default=16, help="of a student's first layers (default 16)")
    parser.add_argument("--teacher-width", type=int, default=32)
    parser.add_argument("--updates", type=int, default=800, help="of every student (default 800)")
    parser.add_argument("--teacher-updates", type=int, default=2000)
    parser.add_argument("--variants", action="store_true", help="also the teacher's running statistics, and soft_ce")
    parser.add_argument("--batch", type=int, default=64, help="images of a student's update (default 64)")
    return parser.parse_args(words)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
