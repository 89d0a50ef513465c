"""Distillation: a student learns what a fine-tuned teacher says of unlabelled images (SimCLRv2's third stage).

Chen et al., "Big Self-Supervised Models are Strong Semi-Supervised Learners", arXiv 2006.10029 section 2, equations 2
and 3. The teacher sees the very crop that the student sees. Terms are means over the batch where the paper writes sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unlabeled.augment import geometry
from unlabeled.augment.photometric import to_input
from unlabeled.data.batch import Batch, Stream
from unlabeled.data.sources.subset import choose
from unlabeled.errors import UserError
from unlabeled.methods.base import Export, Info, Losses, MakeBackbone, Method, Step, input_of
from unlabeled.methods.classifier import Classifier
from unlabeled.methods.distil_config import DistilConfig
from unlabeled.ops.frozen import Frozen
from unlabeled.ops.labels import known, known_accuracy, known_cross_entropy
from unlabeled.ops.precision import at_least_float32

# ---- loss (equation 2)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float, *, scale_by_t2: bool) -> Tensor:
    """Return the mean cross-entropy of the student's logits [b, C] under the teacher's softened classes, 0-d.

    scale_by_t2: times the squared temperature, as in the published code. Computed in at least float32.
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    target = (teacher / temperature).softmax(1)
    loss = -(target * (student / temperature).log_softmax(1)).sum(1).mean()
    return loss * temperature**2 if scale_by_t2 else loss


# ---- the method


class Distil(Method):
    """Teacher and student on one crop of every image; with alpha < 1 labels too (equation 3)."""

    Config = DistilConfig
    label_mask: Tensor  # which samples' labels may be looked at

    @classmethod
    def streams(cls, cfg: DistilConfig) -> dict[str, Stream]:
        """One crop of every image; labels only where they count."""
        return {"train": Stream((geometry.build(cfg.crop),), labels=cfg.alpha < 1)}

    def __init__(self, cfg: DistilConfig, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__()
        self.cfg, self.info = cfg, info
        teacher = make_backbone(cfg.teacher)
        if teacher.gives != "logits":
            raise UserError(f"method.teacher '{cfg.teacher}' gives no logits; name a run that trained a classifier")
        self.teacher_input = input_of(teacher, cfg.crop.size, info)
        self.teacher = Frozen(teacher, cfg.teacher)
        classes = self.teacher(torch.zeros(1, 3, cfg.crop.size, cfg.crop.size)).shape[1]
        if info.classes is not None and info.classes != classes:
            raise UserError(f"method.teacher '{cfg.teacher}' knows {classes} classes, the data card {info.classes}")
        network = make_backbone()
        self.input = input_of(network, cfg.crop.size, info)
        self.student = Classifier(network, classes)
        self.register_buffer("label_mask", self._labelled(info), persistent=False)

    def _labelled(self, info: Info) -> Tensor:
        """Return which samples' labels may be looked at, bool [samples]."""
        stream = info.streams["train"]
        mask = torch.full((stream.samples,), self.cfg.labels is None)
        if self.cfg.labels is not None and stream.labels is not None:
            mask[choose(stream.labels.numpy(), self.cfg.labels)] = True
        return mask

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        """The crops as student and as teacher expect them [b, 3, S, S], and labels, -1 where they may not be used."""
        train = batch["train"]
        views = {
            name: to_input(train.crops[0], image.mean, image.std)
            for name, image in (("view", self.input), ("teacher_view", self.teacher_input))
        }
        if train.label is not None:
            views["label"] = torch.where(self.label_mask[train.index], train.label, -1)
        return views

    def counts(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The labels that may be used."""
        return {"labels": known(views["label"])} if self.cfg.alpha < 1 else {}

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        """The teacher's term, weighted alpha, and that of the labels."""
        logits, teacher_logits = self.student(views["view"]), self.teacher(views["teacher_view"])
        alpha, losses = self.cfg.alpha, Losses({})
        if alpha > 0:
            temperature = step.value(self.cfg.temperature)
            loss = distillation_loss(logits, teacher_logits, temperature, scale_by_t2=self.cfg.scale_by_t2)
            losses.terms["teacher"] = alpha * loss
        if alpha < 1:
            count = self.mean_counts(views, step)["labels"]
            losses.terms["labels"] = (1 - alpha) * known_cross_entropy(logits, views["label"], count)
            losses.metrics["accuracy"] = known_accuracy(logits, views["label"], count)
        losses.metrics["agreement"] = (logits.detach().argmax(1) == teacher_logits.argmax(1)).double().mean()
        return losses

    def exports(self) -> dict[str, Export]:
        """The student as a classifier, and its network."""
        return self.student.exports(self.input)

