"""SimMatchV2: few labels and many unlabelled images, made consistent over a graph of images.

Zheng et al., "SimMatchV2: Semi-Supervised Learning with Graph Consistency", arXiv 2308.06692. A teacher, the student's
moving average, sees a weak view of every unlabelled image, the student one or more strong ones. An image view is a node
(a class distribution and a unit embedding), the similarity of two embeddings an edge. docs/simmatchv2.md has the table
from paper to code.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.augment import geometry, photometric, randaugment
from unlabeled.augment.photometric import normalise, to_float
from unlabeled.config.base.curve import CurveRule
from unlabeled.data.batch import Batch, Stream
from unlabeled.errors import UserError
from unlabeled.methods.base import BackboneModule, Export, Info, Input, Losses, MakeBackbone, Method, Step
from unlabeled.methods.simmatchv2_config import RandAugment, SimMatchV2Config
from unlabeled.ops.batchnorm import unsynchronised_buffers
from unlabeled.ops.distributed import gather, world
from unlabeled.ops.ema import ema_update, rising
from unlabeled.ops.machine.memory import to_device
from unlabeled.ops.precision import at_least_float32

# ---- network


class Prediction(NamedTuple):
    """What a network makes of images, in at least float32: logits [b, C], unit embeddings [b, d]."""

    logits: Tensor
    embedding: Tensor


class Network(nn.Module):
    """Backbone, LayerNorm, then a linear classifier and an embedding head side by side: [b, 3, S, S] -> Prediction."""

    def __init__(self, backbone: BackboneModule, classes: int, embed_dim: int, feature_norm: bool) -> None:
        super().__init__()
        width = backbone.num_features
        self.backbone = backbone
        self.norm = nn.LayerNorm(width) if feature_norm else nn.Identity()
        self.classifier = nn.Linear(width, classes)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, embed_dim))

    def forward(self, x: Tensor) -> Prediction:
        """Return logits and embeddings."""
        h = self.norm(self.backbone(x))
        logits, embedding = at_least_float32(self.classifier(h)), at_least_float32(self.head(h))
        return Prediction(logits, F.normalize(embedding, dim=1, eps=1e-12))

    def without_head(self) -> nn.Module:
        """Return a copy that gives logits alone, in evaluation mode."""
        parts: dict[str, nn.Module] = {"backbone": self.backbone, "norm": self.norm, "classifier": self.classifier}
        return copy.deepcopy(nn.Sequential(OrderedDict(parts))).eval()


# ---- what is remembered: the same on every process, written with gathered values after the update


class LabeledBank(nn.Module):
    """The teacher's last embedding of every labelled image, random at first, and its label (a number, not one-hot)."""

    feature: Tensor
    label: Tensor

    def __init__(self, label: Tensor, dim: int) -> None:
        super().__init__()
        self.register_buffer("feature", F.normalize(torch.randn(len(label), dim), dim=1))
        self.register_buffer("label", label)

    def write(self, index: Tensor, feature: Tensor) -> None:
        """Write feature [n, d] to the rows index [n]; of an image that comes twice the last one, on any device."""
        turn = torch.arange(len(index), device=index.device)
        last = turn.new_zeros(len(self.label)).scatter_reduce_(0, index, turn, "amax")
        self.feature[index] = feature[last[index]].to(self.feature.dtype)


class UnlabeledBank(nn.Module):
    """The teacher's embeddings and class distributions of the last `size` unlabelled images, first in first out."""

    feature: Tensor
    prob: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int, classes: int, init: Literal["zero", "uniform"]) -> None:
        super().__init__()
        self.register_buffer("feature", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("prob", torch.full((size, classes), 0.0 if init == "zero" else 1 / classes))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def push(self, feature: Tensor, prob: Tensor) -> None:
        """Write feature [n, d] and prob [n, C] over the oldest rows."""
        rows = (self.pointer + torch.arange(len(feature), device=feature.device)) % len(self.feature)
        self.feature[rows] = feature.to(self.feature.dtype)
        self.prob[rows] = prob.to(self.prob.dtype)
        self.pointer.copy_((self.pointer + len(feature)) % len(self.feature))


# ---- the teacher's targets


class Targets(NamedTuple):
    """What the teacher says of b unlabelled images, without gradient.

    prob: aligned prediction [b, C]. label: the same after propagation over the labelled neighbours [b, C]. mask: 1
    where `prob` is confident, else 0, [b]. edge: similarity to the bank's images, as a distribution, [b, K].
    """

    prob: Tensor
    label: Tensor
    mask: Tensor
    edge: Tensor


def align(prob: Tensor, running: Tensor) -> Tensor:
    """Divide distributions prob [b, C] by the running mean [C] and scale every row to sum 1."""
    aligned = prob / running
    return aligned / aligned.sum(1, keepdim=True)


def neighbours(embedding: Tensor, feature: Tensor, count: int) -> Tensor:
    """Return the `count` rows of feature [N, d] that are most similar to each embedding [b, d], int64 [b, count]."""
    return (embedding @ feature.T).topk(count).indices


def transition(nodes: Tensor, temperature: float) -> Tensor:
    """Return where a walk from each of m unit nodes [b, m, d] goes next, [b, m, m]; it never stays."""
    similarity = nodes @ nodes.transpose(1, 2) / temperature
    similarity.diagonal(dim1=1, dim2=2).fill_(float("-inf"))
    return similarity.softmax(2)


def first_row(walk: Tensor, alpha: float) -> Tensor:
    """Return the first row [b, m] of (1 - alpha) (I - alpha A)^-1 for transitions A [b, m, m]; it sums to 1.

    It is all that is needed of the inverse, so one system of equations is solved instead.
    """
    m = walk.shape[1]
    system = torch.eye(m, dtype=walk.dtype, device=walk.device) - alpha * walk.transpose(1, 2)
    start = walk.new_zeros(len(walk), m)
    start[:, 0] = 1 - alpha
    return torch.linalg.solve(system, start)


def propagate(
    embedding: Tensor, prob: Tensor, bank: LabeledBank, topn: int, alpha: float, temperature: float
) -> Tensor:
    """Return class distributions prob [b, C] after a walk over the graph of each image and its labelled neighbours.

    embedding: [b, d]. The node-edge consistency.
    """
    near = neighbours(embedding, bank.feature, topn)
    nodes = torch.cat([embedding[:, None], bank.feature[near]], 1)
    share = first_row(transition(nodes, temperature), alpha)
    return (share[:, :1] * prob).scatter_add_(1, bank.label[near], share[:, 1:])


# ---- losses


def consistency(
    student: Prediction, teacher: Targets, bank: UnlabeledBank, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return node-node, edge-edge and edge-node losses, 0-d, of one strong view of the images that the teacher saw.

    Labels of the bank that sum to less than 1 (rows never written) are not scaled up, so edge-node has an offset.
    """
    node_node = -(teacher.label * student.logits.log_softmax(1)).sum(1) * teacher.mask
    log_edge = (student.embedding @ bank.feature.T / temperature).log_softmax(1)
    edge_edge = -(teacher.edge * log_edge).sum(1)
    edge_node = -(teacher.prob * (log_edge.exp() @ bank.prob).log()).sum(1)
    return node_node.mean(), edge_edge.mean(), edge_node.mean()


def or_nothing(loss: Tensor, moves: Tensor) -> Tensor:
    """Return the loss or, if it is not finite, as with an empty bank, a zero that still gives `moves` a gradient."""
    return loss if bool(loss.detach().isfinite()) else 0 * moves.sum()


def teacher_momentum(momentum: float | CurveRule) -> float | CurveRule:
    """Return how the teacher's momentum runs: a number above 0.996 stays, a smaller one rises (published code)."""
    return momentum if isinstance(momentum, float) and momentum > 0.996 else rising(momentum)


# ---- the method


class SimMatchV2(Method):
    """Cross-entropy on the labelled images and four consistencies on the unlabelled ones."""

    Config = SimMatchV2Config
    clock = "unlabeled"
    running: Tensor  # mean of the teacher's predictions before alignment, [C]

    @classmethod
    def streams(cls, cfg: SimMatchV2Config) -> dict[str, Stream]:
        """A weak crop of labelled images; a weak one and the strong ones of unlabelled images."""
        weak, *strong = (geometry.build(crop) for crop in (cfg.crop, *cfg.strong))
        return {"labeled": Stream((weak,), labels=True, index=True), "unlabeled": Stream((weak, *strong))}

    def __init__(self, cfg: SimMatchV2Config, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__()
        if info.classes is None:
            raise UserError("simmatchv2 needs classes, and the data card of data.labeled names none")
        label = _labels(info, info.classes)
        if cfg.topn > len(label):
            raise UserError(f"method.topn is {cfg.topn}, but data.labeled has only {len(label)} images")
        batch = info.streams["unlabeled"].batch
        if cfg.bank % batch:
            fitting = max(1, round(cfg.bank / batch)) * batch
            raise UserError(f"method.bank {cfg.bank} is no multiple of data.unlabeled.batch {batch}; {fitting} is")
        self.cfg, self.info = cfg, info
        backbone = make_backbone()
        start = backbone.input
        mean, std = (info.mean, info.std) if start is None else (start.mean, start.std)
        self.input = Input(cfg.crop.size, mean, std)
        self.student = Network(backbone, info.classes, cfg.embed_dim, cfg.feature_norm)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.labeled_bank = LabeledBank(label, cfg.embed_dim)
        self.unlabeled_bank = UnlabeledBank(cfg.bank, cfg.embed_dim, info.classes, cfg.bank_init)
        self.register_buffer("running", torch.full((info.classes,), 1 / info.classes))

    def train(self, mode: bool = True) -> SimMatchV2:
        """Set the mode; an EMAN teacher stays in evaluation mode."""
        super().train(mode)
        if self.cfg.ema.kind == "eman":
            self.teacher.eval()
        return self

    # ---- views

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        """Labelled images [b, 3, S, S], their labels and places [b]; weak and strong views of the unlabelled ones."""
        few = batch["labeled"]
        assert few.label is not None
        weak, *strong = batch["unlabeled"].crops
        images = {"labeled": few.crops[0], "weak": weak}
        images |= {f"strong{i}": self._strong(crop, step) for i, crop in enumerate(strong)}
        return {name: self._normalised(x) for name, x in images.items()} | {"label": few.label, "index": few.index}

    def _strong(self, crop: Tensor, step: Step) -> Tensor:
        aug, (total, mine) = self.cfg.augment, self.info.share(len(crop))
        if isinstance(aug, RandAugment):
            return randaugment.apply(crop, randaugment.draw(total, aug.operations, aug.square, step.shared).rows(mine))
        drawn = photometric.Drawn(
            photometric.draw_jitter(
                total, aug.brightness, aug.contrast, aug.saturation, aug.hue, aug.jitter_p, step.shared
            ),
            photometric.draw_chosen(total, aug.gray_p, step.shared),
            photometric.draw_blur(total, aug.blur_p, aug.blur_sigma, step.shared),
            photometric.draw_chosen(total, aug.solarize_p, step.shared),
        )
        return photometric.render(crop, drawn.rows(mine))

    def _normalised(self, x: Tensor) -> Tensor:
        mean, std = self.input.mean, self.input.std
        return to_float(x) if mean is None or std is None else normalise(to_float(x), mean, std)

    # ---- forward

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        """Labels, then the consistencies, each the mean over all strong views and times its weight."""
        cfg, n, temperature = self.cfg, len(views["labeled"]), step.value(self.cfg.temperature)
        teacher, carry = self._teach(views["labeled"], views["weak"], step)
        # BatchNorm sees labelled images and the first strong views together, further views by themselves
        first = self.student(torch.cat([views["labeled"], views["strong0"]]))
        others = [self.student(views[f"strong{i}"]) for i in range(1, len(cfg.strong))]
        predictions = [Prediction(first.logits[n:], first.embedding[n:]), *others]
        label = views["label"]
        with torch.autocast(label.device.type, enabled=False):
            supervised = F.cross_entropy(first.logits[:n], label)
            losses = (consistency(p, teacher, self.unlabeled_bank, temperature) for p in predictions)
            parts = zip(*losses, strict=True)
            node_node, edge_edge, edge_node = (torch.stack(part).mean() for part in parts)
        terms = {
            "supervised": supervised,
            "node_node": cfg.lambda_nn * node_node,
            "edge_edge": cfg.lambda_ee * or_nothing(edge_edge, first.embedding),
            "edge_node": cfg.lambda_en * or_nothing(edge_node, first.embedding),
        }
        right = (first.logits[:n].detach().argmax(1) == label).double().mean()
        carry["index"] = views["index"]
        return Losses(terms, carry, {"labeled_accuracy": right, "confident": teacher.mask.double().mean()})

    @torch.no_grad()
    def _teach(self, labeled: Tensor, weak: Tensor, step: Step) -> tuple[Targets, dict[str, Tensor]]:
        cfg, n, temperature = self.cfg, len(labeled), step.value(self.cfg.temperature)
        logits, embedding = self._teacher(torch.cat([labeled, weak]), step)
        with torch.autocast(weak.device.type, enabled=False):
            raw, weak_embedding = logits[n:].softmax(1), embedding[n:]
            prob = align(raw, self.running) if cfg.align else raw
            label = propagate(weak_embedding, prob, self.labeled_bank, cfg.topn, cfg.alpha, temperature)
            mask = (prob.amax(1) >= cfg.threshold).to(prob.dtype)
            edge = (weak_embedding @ self.unlabeled_bank.feature.T / temperature).softmax(1)
        carry = {"labeled": embedding[:n], "weak": torch.cat([weak_embedding, prob, raw], 1)}
        return Targets(prob, label, mask, edge), carry

    def _teacher(self, x: Tensor, step: Step) -> Prediction:
        """Let the teacher see x; where BatchNorm is each process's own, images change processes for that (ShuffleBN).

        Else teacher and student would see an image among the same others, which the statistics could give away.
        """
        if self.cfg.ema.kind == "eman" or world() == 1 or not unsynchronised_buffers(self.teacher):
            return self.teacher(x)
        total, mine = self.info.share(len(x))
        order = torch.randperm(total, generator=step.shared)
        prediction = self.teacher(gather(x.contiguous())[to_device(order[mine], x.device)])
        back = to_device(order.argsort()[mine], x.device)
        return Prediction(*(gather(part)[back] for part in prediction))

    # ---- after the update

    @torch.no_grad()
    def after_step(self, step: Step, carry: dict[str, Tensor]) -> dict[str, float]:
        """Fill the banks and move the running mean with what was seen before the update; then move the teacher."""
        cfg = self.cfg
        classes = len(self.running)
        self.labeled_bank.write(gather(carry["index"]), gather(carry["labeled"]))
        embedding, prob, raw = gather(carry["weak"]).split([cfg.embed_dim, classes, classes], 1)
        self.unlabeled_bank.push(embedding, prob)
        if cfg.align:
            self.running.lerp_(raw.mean(0).to(self.running.dtype), 1 - cfg.align_momentum)
        momentum = step.value(teacher_momentum(cfg.ema.momentum), ahead=1)
        ema_update(self.teacher, self.student, momentum, "average" if cfg.ema.kind == "eman" else "keep")
        return {}

    def exports(self) -> dict[str, Export]:
        """Classifier and backbone of the student, which the paper evaluates, then of the teacher."""

        def backbone(of: Network) -> nn.Module:
            return copy.deepcopy(of.backbone).eval()

        return {
            "classifier": Export(self.student.without_head, "logits", self.input),
            "backbone": Export(lambda: backbone(self.student), "vector", self.input),
            "teacher-classifier": Export(self.teacher.without_head, "logits", self.input),
            "teacher-backbone": Export(lambda: backbone(self.teacher), "vector", self.input),
        }


def _labels(info: Info, classes: int) -> Tensor:
    """Return the labels of the labelled stream, int64 [N]; zeros where a checkpoint will bring them.

    Raises UserError if one is unknown or a class has none.
    """
    labels = info.streams["labeled"].labels
    if labels is None:
        return torch.zeros(info.streams["labeled"].samples, dtype=torch.int64)
    unknown = int((labels < 0).sum())
    if unknown:
        raise UserError(
            f"data.labeled: {unknown} of {len(labels)} images have no label; choose others with data.labeled.subset"
        )
    empty = (torch.bincount(labels, minlength=classes) == 0).nonzero()
    if len(empty):
        raise UserError(f"data.labeled has no image of class {int(empty[0])}; each of the {classes} classes needs one")
    return labels.clone()
