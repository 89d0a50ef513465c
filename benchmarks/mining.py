"""What a teacher chooses from a pool of which half is foreign, and what the choice gives a student without labels."""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import measure
from unlabeled.config.card import Card
from unlabeled.config.passes.mining import MineSettings
from unlabeled.config.read import read_card, read_recipe
from unlabeled.config.recipe import Subset
from unlabeled.data.sources.files.lists import read_lines
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.subset import choose
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate import evaluate_many
from unlabeled.passes.mining.mine import mine

QUESTION = ("which part of the images that a teacher chooses from a half foreign pool is of its own kind and of the "
            "right class, are planted copies of test images found, and what does the choice give a student?")
OWN_KIND, RIGHT_CLASS = 75, 88  # bars, %
LABELLED, POOL = 2500, 1000  # images of every class: with labels for the teacher, and in the pool without
PER_CLASS = 500
COPIES = 40  # test images that the pool holds again, reduced, compressed or brightened
PLAIN = "{{name: 'benchmarks.plain_network:plain', options: {{width: {width}}}}}"
TEACHER, STUDENT, BATCH = 16, 8, 64  # widths of the first of four pairs of layers; images of an update
COMMON = ["train.precision=fp32", "train.checkpoint_every=1000", "eval={every: 0, at_end: []}", "data.workers=0",
          "optim.warmup_epochs=0.5", "optim.lr.base=0.1", "optim.exclude_decay=[]", "optim.nesterov=false"]
CROP = "{kind: padded, size: 32, pad: 4}"
CARD = """\
name: {name}
source: {{kind: array}}
root: $CARD
splits: {{train: {{path: {file}}}}}
image_size: 32
mean: [0.4913, 0.4821, 0.4465]
std: [0.2452, 0.2428, 0.2606]
"""


def main(words: list[str] | None = None) -> int:
    """Train a teacher, make a pool and mine it for every seed; runs that are finished are not trained again."""
    given = _arguments(words)
    measure.one_thread()
    report = measure.Report("mining", "Mining CIFAR-10 images from a half foreign pool, on a CPU", QUESTION,
                            ["kornia", "faiss-cpu"])
    seeds = [_seed(given, seed) for seed in range(given.seeds)]
    rows = []
    for name, line in _lines(seeds).items():
        values = [one[name] for one in seeds if name in one]
        cells = [f"{one[name]:.1f}" if name in one else "" for one in seeds]
        rows.append([name, *cells, f"{statistics.mean(values):.1f}", line])
    report.table(["%", *(f"seed {seed}" for seed in range(given.seeds)), "mean", "bar"], rows)
    report.say(f"Teacher: width {TEACHER}, {given.updates} updates of {BATCH} on {LABELLED} labels per class of "
               f"CIFAR-10's training images. Pool: {POOL} others of every class, as many rendered scenes of 1 to 5 "
               f"objects, noise and shuffled 8-pixel tiles of others together, and {COPIES} copies of test images. "
               f"Mined: {PER_CLASS} per class, against those {COPIES} test images and as many others, candidates=2. "
               f"Seeds: of training, labels, pool. Student: width {STUDENT}, SSLD, {given.student_updates} updates of "
               f"{BATCH}, the last one scored on 10,000 test images, of seed 0 alone; `random`: as many images of the "
               "pool as were mined.")
    report.finish(given.out)
    return 0


def _lines(seeds: Sequence[dict[str, float]]) -> dict[str, str]:
    """Return the rows of the table with their bars, which every seed is to meet."""
    bars = {"mined: of its own kind": OWN_KIND, "of those: of the right class": RIGHT_CLASS}
    return {name: measure.bar(min(one[name] for one in seeds), at_least=bars[name], unit=" % in every seed")
            if name in bars else "" for name in seeds[0]}


def _seed(given: argparse.Namespace, seed: int) -> dict[str, float]:
    folder: Path = given.runs / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    teacher = folder / "teacher"
    rule = f"{{per_class: {LABELLED}, seed: {seed}}}"
    settings = [f"method={{name: finetune, crop: {CROP}}}", f"backbone={PLAIN.format(width=TEACHER)}",
                f"data.train.subset={rule}", f"data.train.batch={BATCH}", f"train.updates={given.updates}",
                f"train.seed={seed}", "data.train.epoch_samples=4000"]
    train(read_recipe("cifar10/finetune-cpu", [*COMMON, *settings]), teacher)
    found = {"teacher": _accuracy(teacher)}
    labels = _pool(folder, seed)
    listed = mine(str(teacher), MineSettings(
        pool=str(folder / "pool.yaml"), against=str(folder / "against.yaml") + ":train", out=str(folder / "mined"),
        per_class=PER_CLASS, candidates=2, workers=0, precision="fp32"))
    assert listed is not None
    found |= _judge(listed.parent, labels)
    if given.student_updates and seed == 0:
        _random(folder, len(read_lines(listed.read_bytes())), seed)
        cards = {"mined": listed.parent / "mined.yaml", "random": folder / "random.yaml",
                 "whole pool": folder / "pool.yaml"}
        for name, card in cards.items():
            found[f"student on {name}"] = _student(folder / f"student-{name.split()[0]}", teacher, card, seed, given)
    return found


def _student(run: Path, teacher: Path, card: Path, seed: int, given: argparse.Namespace) -> float:
    settings = [f"method.teacher={teacher}", f"backbone={PLAIN.format(width=STUDENT)}", f"data.train.card={card}",
                f"data.train.batch={BATCH}", f"train.updates={given.student_updates}", f"train.seed={seed}"]
    train(read_recipe("cifar10/ssld-cpu", [*COMMON, *settings]), run)
    return _accuracy(run)


def _accuracy(run: Path) -> float:
    (scored,) = evaluate_many(["classify"], run, ["card=cifar10"])
    (number,) = (number for number in scored.numbers if number.name == "classifier")
    return float(number.network["value"])


def _pool(folder: Path, seed: int) -> np.ndarray:
    """Write pool.yaml and against.yaml with their images; return the pool's labels, -1 foreign, -2 copies."""
    rng = np.random.default_rng(seed)
    train_set, test_set = (open_source(read_card("cifar10"), split) for split in ("train", "val"))
    assert train_set.images is not None and train_set.labels is not None and test_set.images is not None
    free = _without_labels(train_set.labels, seed)
    own = np.concatenate([rng.permutation(free[train_set.labels[free] == label])[:POOL] for label in range(10)])
    tiles = rng.permutation(np.setdiff1d(free, own))
    part = len(own) // 3
    scenes = Card.model_validate({"name": "scenes", "source": {"kind": "shapes", "size": 32, "objects": [1, 5],
                                  "seed": seed}, "splits": {"train": {"samples": part}}, "in_memory": True})
    rendered = open_source(scenes, "train").images
    assert rendered is not None
    noise = _noise(len(own) - 2 * part, rng)
    tested = rng.permutation(len(test_set.images))[: 2 * COPIES]
    copies = np.stack([_changed(test_set.images[place], number) for number, place in enumerate(tested[:COPIES])])
    images = np.concatenate([train_set.images[own], rendered, _shuffled(train_set.images[tiles[:part]], rng), noise,
                             copies])
    labels = np.concatenate([train_set.labels[own], np.full(len(own), -1), np.full(COPIES, -2)])
    order = rng.permutation(len(images))
    for name, content in (("pool", images[order]), ("against", test_set.images[tested])):
        np.savez(folder / f"{name}.npz", images=content)
        (folder / f"{name}.yaml").write_text(CARD.format(name=name, file=f"{name}.npz"))
    return labels[order]


def _without_labels(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return the places that the teacher's subset leaves out."""
    return np.setdiff1d(np.arange(len(labels)), choose(labels, Subset(per_class=LABELLED, seed=seed)))


def _noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return pictures of noise, of grains from 1 to 8 pixels."""
    grains = [rng.integers(0, 256, (32 // side, 32 // side, 3), np.uint8).repeat(side, 0).repeat(side, 1)
              for side in rng.choice([1, 2, 4, 8], count).tolist()]
    return np.stack(grains)


def _shuffled(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return images [n, 32, 32, 3] whose sixteen tiles have changed places."""
    tiles = images.reshape(-1, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 16, 8, 8, 3)
    tiles = np.stack([each[rng.permutation(16)] for each in tiles])
    return tiles.reshape(-1, 4, 4, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 32, 32, 3)


def _changed(image: np.ndarray, number: int) -> np.ndarray:
    """Return a copy that was reduced and enlarged, brightened, or only lost its lowest bit."""
    if number % 3 == 0:
        small = Image.fromarray(image).resize((24, 24), Image.Resampling.BICUBIC)
        return np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC))
    return (image * 0.7 + 30).astype(np.uint8) if number % 3 == 1 else image & 0xFE


def _judge(mined: Path, labels: np.ndarray) -> dict[str, float]:
    """Return shares in percent: of the own kind, of the right class, of copies that were left out."""
    with open(mined / "selection.csv", newline="") as file:
        rows = [(int(row["key"].rpartition("-")[2]), int(row["class"])) for row in csv.DictReader(file)]
    truth, chosen = labels[[place for place, _ in rows]], np.array([label for _, label in rows])
    own = truth >= 0
    with open(mined / "pairs.csv", newline="") as file:
        removed = {int(row["pool"].rpartition("-")[2]) for row in csv.DictReader(file) if row["one_picture_by"]}
    copies = np.flatnonzero(labels == -2)
    return {"mined: of its own kind": 100 * own.mean(),
            "of those: of the right class": 100 * (truth == chosen)[own].mean(),
            "copies of test images found": 100 * np.isin(copies, list(removed)).mean(),
            "others taken for copies, images": float(len(removed - set(copies.tolist())))}


def _random(folder: Path, count: int, seed: int) -> None:
    """Write random.yaml: as many images of the pool, whichever."""
    with np.load(folder / "pool.npz") as pool:
        images = pool["images"]
    places = np.random.default_rng(seed).permutation(len(images))[:count]
    np.savez(folder / "random.npz", images=images[np.sort(places)])
    (folder / "random.yaml").write_text(CARD.format(name="random", file="random.npz"))


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = measure.arguments_of_seeds("mining", QUESTION, "runs and pools")
    parser.add_argument("--updates", type=int, default=3500, help="of the teacher (default 3500)")
    parser.add_argument("--student-updates", type=int, default=800, help="of every student; 0: none (default 800)")
    return parser.parse_args(words)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
