"""What stored views and a teacher's probabilities of them teach, beside labels on the same views: CIFAR-10 on a CPU.

    python -m benchmarks.reinforcement OUT [seeds=3] [images=5000] [entries=8] [updates=800] [teacher_updates=1000]

A plain network is trained on all labels; it says what it sees in `entries` views of each of `images` training images. A
plain student learns from replays of these, of which the targets are the teacher's probabilities or the labels; all else
is equal. $DATA/cifar10 holds the shards. Prints the table of benchmarks/results/reinforcement.md.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from unlabeled.cli.main import main
from unlabeled.config.passes.reinforce import ReinforceSettings
from unlabeled.config.read import read_card
from unlabeled.config.recipe import Subset
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.subset import open_part
from unlabeled.passes.reinforce import reinforce

DEFAULTS = {"seeds": 3, "images": 5000, "entries": 8, "updates": 800, "teacher_updates": 1000}
CROP = "{kind: padded, size: 32, flip: 0.5}"
PLAIN = "backbone={name: 'benchmarks.plain_network:plain', options: {width: %d}}"
TEACHER, STUDENT = 16, 8  # widths of the first of four pairs of layers
SHORT = ["data.train.card=cifar10", "train.precision=fp32", "data.train.batch=64", "optim.lr.base=0.05",
         "optim.warmup_epochs=0"]


def run(out: Path, seeds: int, images: int, entries: int, updates: int, teacher_updates: int) -> None:
    """Train the teacher unless it is there, store its entries, train the students and print their accuracies."""
    teacher, store = out / "teacher", out / "entries"
    started = time.process_time()
    if not (teacher / "export").exists():
        train(teacher, [PLAIN % TEACHER, "method.replay=0", "method.randaugment=null", "method.erasing=0",
                        "data.train.records={}", f"train.updates={teacher_updates}", "data.train.batch=128"])
    subset = f"{{per_class: {images // 10}, seed: 0}}"
    card = read_card("cifar10")
    part = open_part(open_source(card, "train"), card, Subset(per_class=images // 10, seed=0))
    settings = ReinforceSettings(card="cifar10", out=str(store), entries=entries, topk=10, batch=512, workers=0,
                                 crop={"kind": "padded", "size": 32})
    kept = reinforce(part, [str(teacher)], settings, torch.device("cpu"))
    assert kept is not None
    size = sum(file.stat().st_size for file in store.glob("rows-*")) / images
    print(f"teacher {accuracy(teacher):.1f} %, {size:.0f} bytes per image in {entries} entries")
    scores: dict[str, list[float]] = {}
    arms = {
        "stored probabilities": ["method.replay=1"],
        "labels, the same views": ["method.replay=1", "method.targets=label"],
    }
    for seed in range(seeds):
        for name, settings_of in arms.items():
            folder = out / f"{name.replace(', ', '-').replace(' ', '-')}-s{seed}"
            if not (folder / "export").exists():
                train(folder, [PLAIN % STUDENT, *settings_of, f"data.train.subset={subset}", f"train.seed={seed}",
                               f"train.updates={updates}", f"data.train.records={{reinforcement: '{store}'}}"])
            scores.setdefault(name, []).append(accuracy(folder))
    for name, values in scores.items():
        each = ", ".join(f"{value:.1f}" for value in values)
        print(f"| {name} | {statistics.mean(values):.1f} | {each} |")
    gains = np.subtract(scores["stored probabilities"], scores["labels, the same views"])
    print(f"gain {gains.mean():.1f} ({', '.join(f'{gain:.1f}' for gain in gains)}); "
          f"{(time.process_time() - started) / 60:.0f} minutes of CPU")


def train(folder: Path, settings: list[str]) -> None:
    """Train a run, and score it on the test images."""
    own = [f"run={folder}", *SHORT, f"method.crop={CROP}", *settings]
    if "method.replay=1" in own:  # no plain image: their options would have no effect
        own = [text for text in own if not text.startswith("method.randaugment")]
    assert main(["pretrain", "cifar10/reinforcement-cpu", *own]) == 0


def accuracy(folder: Path) -> float:
    """Return the accuracy on the test images in percent, as `unlabeled evaluate classify` wrote it."""
    (file,) = (folder / "eval").glob("classify-*.json")
    return float(json.loads(file.read_text())["numbers"][0]["network"]["value"])


if __name__ == "__main__":
    given = dict(text.split("=", 1) for text in sys.argv[2:])
    run(Path(sys.argv[1]), **{key: int(given.get(key, value)) for key, value in DEFAULTS.items()})
