"""Feature distillation: a student predicts the features of a frozen teacher through a linear layer, without labels.

No published method; docs/feature-distil.md says what is taken from where. The teacher sees the very crop that the
student sees, each normalised by its own statistics. Teachers that give logits are for `ssld` and `distil`.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.augment import geometry
from unlabeled.augment.photometric import to_input
from unlabeled.data.batch import Batch, Stream
from unlabeled.errors import UserError
from unlabeled.methods.base import BackboneModule, Export, Info, Losses, MakeBackbone, Method, Step, input_of, width_of
from unlabeled.methods.feature_distil.config import Cosine, FeatureDistilConfig, SmoothL1
from unlabeled.methods.feature_distil.features import Features, Match, Seen
from unlabeled.ops.distributed import gather
from unlabeled.ops.frozen import Frozen, freeze_unreached
from unlabeled.ops.precision import at_least_float32

# ---- targets: the teacher's features, standardised


class Moments(NamedTuple):
    """How many vectors there are, 0-d, and mean and variance [D] of their dimensions."""

    total: Tensor
    mean: Tensor
    variance: Tensor


def moments(x: Tensor) -> Moments:
    """Return those of the vectors x [..., D]."""
    rows = x.flatten(0, -2)
    return Moments(rows.new_full((), len(rows)), rows.mean(0), rows.var(0, correction=0))


def joined(parts: Moments) -> Moments:
    """Return those of all parts together, whose own are stacked: [P], [P, D] and [P, D] (Chan et al. 1979)."""
    total = parts.total.sum()
    share = (parts.total / total)[:, None]
    mean = (share * parts.mean).sum(0)
    return Moments(total, mean, (share * (parts.variance + (parts.mean - mean).square())).sum(0))


class Standardise(nn.Module):
    """Every dimension by its mean and deviation over all vectors of the updates before this one: [..., D], same.

    Before there are any, in the first update, every vector by its own mean and deviation. Deviations below a hundredth
    of their root mean square count as that, so that a dimension in which nothing happens does not become noise.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))  # of cells there are more than float32 counts
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.zeros(dim))

    @property
    def deviation(self) -> Tensor:
        """What dimensions are divided by, [D]."""
        return self.variance.clamp_min(1e-4 * self.variance.mean()).clamp_min(1e-24).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        """Return the standardised vectors; changes nothing."""
        return torch.where(self.count > 0, (x - self.mean) / self.deviation, by_itself(x))

    def add(self, parts: Moments) -> None:
        """Count in the vectors of an update, in parts as for `joined`."""
        new = joined(parts)
        before = Moments(self.count.to(new.mean.dtype), self.mean, self.variance)
        after = joined(Moments(*(torch.stack(pair) for pair in zip(before, new, strict=True))))
        self.count += new.total.to(torch.int64)
        self.mean.copy_(after.mean)
        self.variance.copy_(after.variance)


def by_itself(x: Tensor) -> Tensor:
    """Return vectors [..., D] with mean 0 and deviation 1 over their own dimensions (arXiv 2205.14141 section 2)."""
    return F.layer_norm(x, x.shape[-1:])


# ---- loss


def feature_loss(prediction: Tensor, target: Tensor, cfg: Cosine | SmoothL1) -> Tensor:
    """Return the mean loss of vectors [..., D], 0-d, in at least float32."""
    prediction, target = at_least_float32(prediction), at_least_float32(target)
    if isinstance(cfg, SmoothL1):
        return F.smooth_l1_loss(prediction, target, beta=cfg.beta)
    return 1 - F.cosine_similarity(prediction, target, dim=-1).mean()


# ---- the method


class FeatureDistil(Method):
    """Teacher and student on one crop of every image, compared by vectors, by cells, or by both."""

    Config = FeatureDistilConfig

    @classmethod
    def streams(cls, cfg: FeatureDistilConfig) -> dict[str, Stream]:
        """One crop of every image, without its label."""
        return {"train": Stream((geometry.build(cfg.crop),))}

    def __init__(self, cfg: FeatureDistilConfig, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__()
        self.cfg, size = cfg, cfg.crop.size
        self.weights = {name: w for name, w in (("pooled", cfg.pooled), ("cells", cfg.cells)) if w}
        wanted = {name: name in self.weights for name in ("pooled", "cells")}
        teacher = self._opened(make_backbone)
        if teacher.gives == "logits":
            raise UserError(f"method.teacher '{cfg.teacher}' gives logits; name an export that gives features, such as "
                            "RUN:backbone, or take method ssld or distil, which learn from logits")
        self.teacher_input = input_of(teacher, size, info)
        self.teacher = Frozen(Features(teacher, size, f"method.teacher '{cfg.teacher}'", **wanted), cfg.teacher)
        network = make_backbone()
        width_of(network)
        self.input = input_of(network, size, info)
        self.student = Features(network, size, "the backbone", **wanted)
        black = torch.zeros(1, 3, size, size)
        target, seen = self.teacher(black), self.student.eval()(black)
        freeze_unreached(self.student.train(), self._compared(seen))
        self.match = Match(seen.grid(), target.grid()) if cfg.cells else None
        self.projection, self.statistics = nn.ModuleDict(), nn.ModuleDict()
        for name, x, y in zip(self.weights, self._compared(seen), self._compared(target), strict=True):
            self.projection[name] = nn.Linear(x.shape[-1], y.shape[-1])
            if cfg.standardise == "dimensions":
                self.statistics[name] = Standardise(y.shape[-1])

    def _opened(self, make_backbone: MakeBackbone) -> BackboneModule:
        """Return the teacher's network; what is said of its options is said under their name here."""
        try:
            return make_backbone(self.cfg.teacher, features=True, options=self.cfg.teacher_options)
        except UserError as error:
            raise UserError(str(error).replace("backbone.options", "method.teacher_options")) from error

    def _compared(self, seen: Seen) -> list[Tensor]:
        """Return the vectors that are compared, in the order of `weights`."""
        return [getattr(seen, name) for name in self.weights]

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        """The crops as student and as teacher expect them [b, 3, S, S]."""
        crop = batch["train"].crops[0]
        return {
            "view": to_input(crop, self.input.mean, self.input.std),
            "teacher_view": to_input(crop, self.teacher_input.mean, self.teacher_input.std),
        }

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        """A term for vectors and one for cells, weighted; the log has their cosines, whichever loss is taken."""
        seen, target = self.student(views["view"]), self.teacher(views["teacher_view"])
        if self.match is not None:
            seen.cells, target.cells = self.match(seen.cells, target.cells)
        losses = Losses({})
        for name, x, y in zip(self.weights, self._compared(seen), self._compared(target), strict=True):
            prediction, y = self.projection[name](x), at_least_float32(y)
            if self.statistics:
                losses.carry |= {f"{name}_{field}": value[None] for field, value in moments(y)._asdict().items()}
            y = self.statistics[name](y) if self.statistics else by_itself(y)
            losses.terms[name] = self.weights[name] * feature_loss(prediction, y, self.cfg.loss)
            losses.metrics[f"cosine_{name}"] = 1 - feature_loss(prediction.detach(), y, Cosine())
        return losses

    def after_step(self, step: Step, carry: dict[str, Tensor]) -> dict[str, float]:
        """Count the teacher's features of this update in, those of all micro-batches and processes."""
        for name, statistics in self.statistics.items():
            assert isinstance(statistics, Standardise)
            statistics.add(Moments(*(gather(carry[f"{name}_{field}"]) for field in Moments._fields)))
        return {}

    def exports(self) -> dict[str, Export]:
        """The student's network."""
        return {"backbone": Export(lambda: copy.deepcopy(self.student.network).eval(), "vector", self.input)}
