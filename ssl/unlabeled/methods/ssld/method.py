"""SSLD: a student learns what a frozen classifier says of unlabelled images, by symmetric KL on one shared view.

Cui et al., "Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve Backbones",
arXiv 2103.05959; the loss as in the published code (PaddleClas, DMLLoss). No label is read anywhere. The second stage
is the same method from the first one's classifier, `backbone.init: RUN:classifier`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from unlabeled.augment import autoaugment, geometry
from unlabeled.augment.photometric import to_input
from unlabeled.backbones.sizes import try_image
from unlabeled.data.batch import Batch, Stream
from unlabeled.data.records.classes import Classes, classes_of_teacher, refuse_other_classes
from unlabeled.errors import UserError
from unlabeled.methods.base import BackboneModule, Export, Info, Losses, MakeBackbone, Method, Step, input_of
from unlabeled.methods.classifier import Classifier
from unlabeled.methods.ssld.config import SMALLEST_BLOCK, SSLDConfig
from unlabeled.ops.frozen import Frozen
from unlabeled.ops.norms import tracking_batchnorms
from unlabeled.ops.precision import at_least_float32

EPS = 1e-12  # of the published code: a confident disagreement costs log 1e12 at most

# ---- losses (section 3.1)


class Divergences(NamedTuple):
    """KL divergences per sample [b]: of the student from the teacher, and of the teacher from the student."""

    teacher_student: Tensor
    student_teacher: Tensor


def divergences(student: Tensor, teacher: Tensor, eps: float = EPS) -> Divergences:
    """Return both KL divergences of the classes that logits [b, C] stand for, in at least float32."""
    q, p = at_least_float32(student).softmax(1), at_least_float32(teacher.detach()).softmax(1)
    ratio = ((p + eps) / (q + eps)).log()
    return Divergences((p * ratio).sum(1), -(q * ratio).sum(1))


def js_loss(student: Tensor, teacher: Tensor, eps: float = EPS) -> Tensor:
    """Return half the sum of both KL divergences, mean over logits [b, C], 0-d; no gradient reaches the teacher.

    The authors call it JS divergence. It is not Jensen and Shannon's, whose reference is the mean of both.
    """
    both = divergences(student, teacher, eps)
    return 0.5 * (both.teacher_student + both.student_teacher).mean()


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean cross-entropy of the student's logits [b, C] under the teacher's classes, 0-d."""
    p = at_least_float32(teacher.detach()).softmax(1)
    return -(p * at_least_float32(student).log_softmax(1)).sum(1).mean()


LOSSES = {"js": js_loss, "soft_ce": soft_cross_entropy}

# ---- networks (section 3.2)


def make_teacher(cfg: SSLDConfig, network: BackboneModule) -> tuple[Frozen, int]:
    """Return the frozen teacher and the number of classes it knows. Raises UserError for one that is no classifier."""
    if network.gives != "logits":
        raise UserError(f"method.teacher '{cfg.teacher}' gives no logits; name a network that was trained as a "
                        "classifier")
    logits, _ = try_image(network, cfg.crop.size)
    by_batch = cfg.teacher_bn == "batch"
    if by_batch and not tracking_batchnorms(network):
        raise UserError(f"method.teacher '{cfg.teacher}' has no BatchNorm, so no statistics of a batch: set "
                        "method.teacher_bn=running")
    return Frozen(network, cfg.teacher, by_batch=by_batch), logits.shape[1]


def refuse_other_card(teacher: str, classes: int, names: Sequence[str] | None, info: Info) -> None:
    """Raise UserError, with the cure, if a card has other classes than the teacher, or another order of them.

    names: of the teacher's classes.
    """
    refuse_other_classes(
        classes_of_teacher(teacher, classes, names, f"method.teacher '{teacher}'"),
        Classes("the data card", info.classes, info.names),
        "name a teacher of that set or, to take its images as unlabelled ones, leave its labels out: data.train={mix: "
        f"[{{card: NAME, labels: false}}], batch: {info.streams['train'].batch}}}")


def make_student(network: BackboneModule, classes: int) -> Classifier:
    """Return a classifier on a network, or the network itself if it is one, from a first stage; without dropout.

    Raises UserError if that one knows another number of classes.
    """
    student = network if isinstance(network, Classifier) else Classifier(network, classes)
    if student.linear.out_features != classes:
        raise UserError(f"backbone.init knows {student.linear.out_features} classes, the teacher {classes}; to start "
                        "from its network alone, name it as in RUN:backbone")
    for module in student.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        if isinstance(getattr(module, "drop_rate", None), float):  # timm's drop by a function before the classifier
            module.drop_rate = 0.0  # type: ignore[assignment]
    return student


# ---- the method


class SSLD(Method):
    """Teacher and student on one view of every image, whatever its label."""

    Config = SSLDConfig

    @classmethod
    def streams(cls, cfg: SSLDConfig) -> dict[str, Stream]:
        """One crop of every image."""
        return {"train": Stream((geometry.build(cfg.crop),))}

    def __init__(self, cfg: SSLDConfig, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__()
        self.cfg, self.info = cfg, info
        if cfg.works_by_blocks():
            refuse_small_blocks(info)
        teacher = make_backbone(cfg.teacher)
        self.teacher_input = input_of(teacher, cfg.crop.size, info)
        self.teacher, classes = make_teacher(cfg, teacher)
        refuse_other_card(cfg.teacher, classes, teacher.names, info)
        network = make_backbone()
        self.input = input_of(network, cfg.crop.size, info)
        self.student = make_student(network, classes)

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        """The one view [b, 3, S, S], as the student and as the teacher expect it."""
        crop = batch["train"].crops[0]
        if self.cfg.policy is not None:
            total, mine = self.info.share(len(crop))
            crop = autoaugment.auto_augment(crop, autoaugment.draw(total, step.shared).rows(mine))
        view = to_input(crop, self.input.mean, self.input.std)
        alike = self.teacher_input == self.input
        taught = view if alike else to_input(crop, self.teacher_input.mean, self.teacher_input.std)
        return {"view": view, "teacher_view": taught}

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        """The loss between the classes that both see."""
        view = views["teacher_view"]
        taught = self.teacher(view, [block.rows for block in self.info.blocks(len(view), step.micro)])
        logits = self.student(views["view"])
        agreement = (logits.detach().argmax(1) == taught.argmax(1)).double().mean()
        return Losses({"teacher": LOSSES[self.cfg.loss](logits, taught)}, metrics={"agreement": agreement})

    def exports(self) -> dict[str, Export]:
        """The student as a classifier, from which a second stage starts, and its network."""
        return self.student.exports(self.input)


def refuse_small_blocks(info: Info) -> None:
    """Raise UserError, with the cure, if the blocks of a batch hold too few images for statistics of their own."""
    batch = info.streams["train"].batch
    images = batch // info.block_count
    if images >= SMALLEST_BLOCK:
        return
    parts = info.world * info.grad_accum
    fitting = [n for n in range(parts, batch // SMALLEST_BLOCK + 1, parts) if batch % n == 0]
    cure = f"train.blocks={fitting[-1]}" if fitting else f"data.train.batch={SMALLEST_BLOCK * parts} or more"
    raise UserError(f"the teacher would normalise by the statistics of {info.block_count} blocks of {images} images, "
                    f"and needs {SMALLEST_BLOCK} or more in each: set {cure}, or method.teacher_bn=running")
