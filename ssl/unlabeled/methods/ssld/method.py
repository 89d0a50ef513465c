"""SSLD: a student learns what a frozen classifier says of unlabelled images, by symmetric KL on one shared view.

Cui et al., "Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve Backbones",
arXiv 2103.05959; the loss as in the published code (PaddleClas, DMLLoss). No label is read anywhere. The second stage is
the same method from the first one's classifier, `backbone.init: RUN:classifier`.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from unlabeled.augment import autoaugment, geometry
from unlabeled.augment.photometric import to_input
from unlabeled.backbones.sizes import try_image
from unlabeled.data.batch import Batch, Stream
from unlabeled.errors import UserError
from unlabeled.methods.base import BackboneModule, Export, Info, Losses, MakeBackbone, Method, Step, input_of
from unlabeled.methods.finetune import Classifier
from unlabeled.methods.ssld.config import SMALLEST_BLOCK, SSLDConfig
from unlabeled.ops.frozen import Frozen
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
    if by_batch and not has_batchnorm(network):
        raise UserError(f"method.teacher '{cfg.teacher}' has no BatchNorm, so no statistics of a batch: set "
                        "method.teacher_bn=running")
    return Frozen(network, cfg.teacher, by_batch=by_batch), logits.shape[1]


def make_student(network: BackboneModule, classes: int, init: str) -> Classifier:
    """Return a classifier on a network, or the one that `init` names, from the first stage; without dropout.

    Raises UserError if that one knows another number of classes.
    """
    if not isinstance(network, Classifier):
        student = Classifier(network, classes)
    elif network.linear.out_features != classes:
        raise UserError(f"{init} knows {network.linear.out_features} classes, the teacher {classes}: start from its "
                        "backbone, as in RUN:backbone")
    else:
        student = network
    for module in student.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        if isinstance(getattr(module, "drop_rate", None), float):  # timm's networks drop by a function before the classifier
            module.drop_rate = 0.0
    return student
