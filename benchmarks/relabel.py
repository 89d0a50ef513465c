"""What ReLabel's label maps teach that labels do not: scenes of several objects, of which a crop shows another one."""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import measure
from unlabeled.config.passes.labelmaps import LabelmapSettings
from unlabeled.config.read import read_card, read_recipe
from unlabeled.data.sources.open import open_source
from unlabeled.engine.train import train
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.passes.labelmaps import write_labelmaps

QUESTION = "how much better is a classifier that learns from label maps of crowded scenes than from their labels?"
GAIN = 9.0  # bar: points of ReLabel over plain labels
TEACHER_UPDATES = 400

# scenes of several objects, twice as large as images of one: objects are then about as large in both
CARD = """\
name: {name}
source: {{kind: shapes, size: {size}, objects: {objects}, seed: 1}}
splits: {{train: {{samples: {samples}}}, val: {{samples: 1000}}}}
classes: [disc, square, triangle, star, ring, cross, heart, moon, hexagon, ellipse]
image_size: {size}
mean: [0.4463, 0.4447, 0.4453]
std: [0.1911, 0.1925, 0.1910]
in_memory: true
"""
PLAIN = "backbone={{name: 'benchmarks.plain_network:plain', options: {{width: {width}}}}}"
RUN = ["train.epochs=null", "train.precision=fp32", "data.workers=0", "eval.every=0", "eval.at_end=[]",
       "train.checkpoint_every=10000", "optim={name: sgd, lr: {base: 0.1}, nesterov: true, "
       "weight_decay: 5.0e-4, exclude_decay: []}"]  # fmt: skip
CROP = "method.crop={size: 32, area: [0.1, 0.5], interpolation: bilinear}"
# row of the table -> what differs from recipes/demo/relabel.yaml
STUDENTS = {
    "labels": ["method.targets=label"],
    "labels, smoothed by 0.1": ["method.targets=label", "method.smoothing=0.1"],
    "ReLabel": [],
    "whole map": ["method.pooling=whole"],
}


def main(words: list[str] | None = None) -> int:
    """Train a teacher on single objects, keep its maps of scenes, and train the students on crops of these."""
    given = _arguments(words)
    measure.one_thread()
    report = measure.Report("relabel", "ReLabel against labels", QUESTION)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        work = Work(folder, given.updates, given.samples)
        teacher = work.teacher(4 if given.quick else TEACHER_UPDATES)
        scores = {name: [work.student(name, seed) for seed in range(given.seeds)] for name in STUDENTS}
    gain = [a - b for a, b in zip(scores["ReLabel"], scores["labels"], strict=True)]
    report.say(f"{given.samples} scenes of 3 to 5 objects, 64 px, whose label is the kind of the largest one; "
               f"crops of 0.1 to 0.5 of the area, 32 px, {given.updates} updates of 64; plain network of 8 channels; "
               "tested on 1,000 single objects. Teacher: the plain network of 16 channels on 5,000 single objects, "
               f"{teacher:.1f} % on the same test. Mean and deviation over the seeds.")
    rows = [[name, *_mean(values), measure.bar(statistics.mean(gain), at_least=GAIN, unit=" points over labels")
             if name == "ReLabel" else ""] for name, values in scores.items()]
    rows.append(["gain of ReLabel", *_mean(gain), ""])
    report.table(["targets", "accuracy, %", "of each seed", "bar"], rows)
    report.finish(given.out)
    return 0


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = measure.arguments("relabel", QUESTION, repeats=1)
    parser.add_argument("--seeds", type=int, default=3, help="runs of every kind (default 3)")
    parser.add_argument("--updates", type=int, default=800, help="of 64 images (default 800)")
    parser.add_argument("--samples", type=int, default=4000, help="scenes (default 4000)")
    parser.add_argument("--folder", type=Path, help="keep the runs here; the same command goes on (default: nowhere)")
    given = parser.parse_args(words)
    if given.quick:
        given.seeds, given.updates, given.samples = 1, 4, 128
    return given


def _mean(values: list[float]) -> tuple[str, str]:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}", ", ".join(f"{value:.1f}" for value in values)


class Work:
    """The runs, below one folder."""

    def __init__(self, folder: Path, updates: int, samples: int) -> None:
        self.folder, self.updates = folder, updates
        self.single = self._card("single", 32, "[1, 1]", 5000)
        self.scenes = self._card("scenes", 64, "[3, 5]", samples)

    def _card(self, name: str, size: int, objects: str, samples: int) -> Path:
        card = self.folder / f"{name}.yaml"
        card.write_text(CARD.format(name=name, size=size, objects=objects, samples=samples))
        return card

    def teacher(self, updates: int) -> float:
        """Train the teacher, keep its maps, and return its accuracy."""
        single = "method={name: finetune, crop: {size: 32, area: [0.4, 1.0], interpolation: bilinear}}"
        score = self._trained("teacher", [single, f"data.train={{card: {self.single}, batch: 64}}",
                                          PLAIN.format(width=16), f"train.updates={updates}"])  # fmt: skip
        settings = LabelmapSettings(card=str(self.scenes), out=str(self.folder / "maps"), size=64, batch=64, workers=0,
                                    precision="fp32")  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()):
            source = open_source(read_card(self.scenes), "train")
            write_labelmaps(source, str(self.folder / "teacher"), settings, torch.device("cpu"))
        return score

    def student(self, name: str, seed: int) -> float:
        """Train a student on crops of the scenes and return its accuracy."""
        kept = self.folder / "maps"
        stored = "" if "method.targets=label" in STUDENTS[name] else f", records: {{labelmap: {kept}}}"
        maps = f"data.train={{card: {self.scenes}, batch: 64{stored}}}"
        run = f"{name.replace(' ', '-').replace(',', '')}-s{seed}"
        return self._trained(run, [CROP, *STUDENTS[name], maps, PLAIN.format(width=8), f"train.updates={self.updates}",
                                   f"train.seed={seed}"])  # fmt: skip

    def _trained(self, run: str, overrides: list[str]) -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            assert train(read_recipe("demo/relabel", [*RUN, *overrides]), self.folder / run).finished
            report = evaluate("classify", self.folder / run, [f"card={self.single}", "workers=0", "precision=fp32"])
        assert report is not None
        return float(report["classifier"].network["value"])


if __name__ == "__main__":
    sys.exit(main())
