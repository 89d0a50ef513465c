"""Dataset reinforcement: a classifier learns what teachers said of stored views, replayed exactly (arXiv 2303.08983).

Faghri et al., "Reinforce Data, Multiply Impact: Improved Model Accuracy and Robustness with Dataset Reinforcement",
ICCV 2023, and apple/ml-dr. `unlabeled reinforce` drew some hundred views of every image, kept their parameters and the
teachers' largest probabilities; training draws one of them per visit, and runs no teacher. Now and then it takes the
plain image with its label.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlabeled.augment import operations
from unlabeled.augment.photometric import to_input
from unlabeled.augment.replay import erasing
from unlabeled.augment.replay.crops import StoredCrop, drawing
from unlabeled.augment.replay.entries import RANDAUGMENT_INTERPOLATION
from unlabeled.augment.replay.render import render, replay
from unlabeled.config.passes.reinforce import KIND
from unlabeled.data.batch import Batch, Stream
from unlabeled.data.records.rows import Record
from unlabeled.errors import UserError
from unlabeled.methods.base import Export, Info, Losses, MakeBackbone, Method, Step, input_of
from unlabeled.methods.classifier import Classifier
from unlabeled.methods.reinforcement.config import ReinforcementConfig
from unlabeled.ops.labels import known, known_accuracy, likeliest, one_hot
from unlabeled.ops.machine.memory import to_device
from unlabeled.ops.targets.top_classes import densify, kl_divergence

SHOWN = ("kind", "size", "pad", "border", "resize", "interpolation")  # keys of a crop on which a replay depends


class Reinforcement(Method):
    """KL divergence from the stored probabilities to the student's, on a replay of the stored view."""

    Config = ReinforcementConfig

    @classmethod
    def streams(cls, cfg: ReinforcementConfig) -> dict[str, Stream]:
        """One stored crop of every image, and of its partner where entries are mixed; labels only for plain images."""
        crop = drawing(cfg.crop)
        if cfg.replay == 0:
            return {"train": Stream((crop,), labels=True)}
        crops = tuple(StoredCrop(crop, second) for second in ([False, True] if cfg.mix else [False]))
        record = Record(KIND, entry=True, plain=1 - cfg.replay)
        return {"train": Stream(crops, labels=cfg.replay < 1 or cfg.targets == "label", records=(record,))}

    def __init__(self, cfg: ReinforcementConfig, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__()
        self.cfg, self.info = cfg, info
        about = info.streams["train"].records.get(KIND, {})
        if cfg.replay > 0:
            refuse_other_views(cfg, about)
        classes = info.classes or about.get("num_classes")
        if classes is None:
            raise UserError("reinforcement trains a classifier, and neither data card nor store knows the classes")
        self.classes: int = classes
        network = make_backbone()
        self.input = input_of(network, cfg.crop.size, info)
        self.classifier = Classifier(network, self.classes)
        self.classifier.linear.reset_parameters()

    # ---- views: the replay of what the teachers saw, or a new view of the plain image

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        """The views [b, 3, S, S] and their targets [b, C], zero for plain images whose label is unknown."""
        train = batch["train"]
        if self.cfg.replay == 0:
            every = torch.arange(len(train.index))
            view, target = self._plain(train.crops[0], every, step), self._hot(train)
            return {"view": to_input(view, self.input.mean, self.input.std), "target": target}
        rows = train.records[KIND]
        view, target = replay(train.crops, rows), self._taught(train)
        if self.cfg.replay < 1:
            plain = (rows["entry"] < 0).nonzero().flatten()
            places = to_device(plain, view.device)
            view.index_copy_(0, places, self._plain(train.crops[0], plain, step))
            target.index_copy_(0, places, self._hot(train).index_select(0, places))
        return {"view": to_input(view, self.input.mean, self.input.std), "target": target}

    def _taught(self, train: Batch) -> Tensor:
        """The teachers' probabilities of the replayed views or, for the baseline, the images' labels."""
        if self.cfg.targets == "label":
            return self._hot(train)
        prob, classes = (to_device(train.records[KIND][field], train.index.device) for field in ("prob", "class"))
        return densify(prob, classes, self.classes)

    def _hot(self, train: Batch) -> Tensor:
        assert train.label is not None
        return one_hot(train.label, self.classes)

    def _plain(self, crop: Tensor, rows: Tensor, step: Step) -> Tensor:
        """The usual augmentation of some rows: RandAugment, bilinear where the replay's is nearest, and black erasing.

        crop: of all rows. rows: int64 [n], on the CPU; drawn is for all, so that which are taken changes none of them.
        """
        cfg, size = self.cfg, self.cfg.crop.size
        total, mine = self.info.share(len(crop))
        k, magnitude = (0, 0) if cfg.randaugment is None else (cfg.randaugment.operations, cfg.randaugment.magnitude)
        drawn = operations.draw_rand_augment(total, k, magnitude, size, step.shared)
        uniforms = torch.rand(total, erasing.DRAWS, dtype=torch.float64, generator=step.shared)
        boxes = torch.from_numpy(np.ascontiguousarray(erasing.draw(uniforms.numpy(), cfg.erasing, size)))
        crop = crop.index_select(0, to_device(rows, crop.device))
        return render(crop, drawn.rows(mine).rows(rows), to_device(boxes[mine][rows], crop.device), "bilinear")

    # ---- loss

    def counts(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The images that have a target: all but plain ones of unknown label."""
        return {"images": known(likeliest(views["target"]))}

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        """Mean KL divergence at temperature 1, and how often student and target have the same first class."""
        logits, target, count = self.classifier(views["view"]), views["target"], self.mean_counts(views, step)["images"]
        return Losses(
            {"divergence": kl_divergence(logits, target, count)},
            metrics={"accuracy": known_accuracy(logits, likeliest(target), count)},
        )

    def exports(self) -> dict[str, Export]:
        """The classifier, and the network without it."""
        return self.classifier.exports(self.input)


def refuse_other_views(cfg: ReinforcementConfig, about: dict[str, Any]) -> None:
    """Raise UserError if the recipe's views are not those of the store, of which its header says `about`."""
    stored, mixed = about["crop"], bool(about["mix"])
    if mixed != cfg.mix:
        raise UserError(f"the stored entries are {'mixed with a second image' if mixed else 'not mixed'}, so say "
                        f"method.mix={str(mixed).lower()}")
    stated = about.get("randaugment_interpolation", RANDAUGMENT_INTERPOLATION)
    if stated != RANDAUGMENT_INTERPOLATION:
        raise UserError(f"RandAugment of the stored views was {stated}, and a replay is {RANDAUGMENT_INTERPOLATION}: "
                        "make entries anew, with unlabeled reinforce")
    theirs = {key: "null" if stored.get(key) is None else stored[key] for key in SHOWN
              if getattr(cfg.crop, key, None) != stored.get(key)}
    if theirs:
        first, others = next(iter(theirs)), len(theirs) - 1
        cure = " ".join(f"method.crop.{key}={value}" for key, value in theirs.items())
        if first == "kind":  # each has keys of its own
            block = ", ".join(f"{key}: {stored[key]}" for key in SHOWN if stored.get(key) is not None)
            cure = f"'method.crop={{{block}}}'"
        raise UserError(f"method.crop.{first} is {getattr(cfg.crop, first, None)}, but the stored views have "
                        f"{theirs[first]}{f', and {others} more differ' * (others > 0)}, and a replay shows what the "
                        f"teachers saw: give {cure}, or make entries of other views")
