"""SimCLRv2 pretraining: contrast two views of every image against the views of all other images.

Chen et al., "Big Self-Supervised Models are Strong Semi-Supervised Learners", arXiv 2006.10029; the loss is that of the
published code, the sum of the two directions, which is twice the paper's mean. What the paper states and the code lacks
(the momentum memory) follows docs/simclrv2.md.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.augment import geometry, photometric
from unlabeled.data.batch import Batch, Stream
from unlabeled.errors import UserError
from unlabeled.methods.base import (
    BackboneModule,
    Export,
    Group,
    Info,
    Input,
    Losses,
    MakeBackbone,
    Method,
    Step,
    width_of,
)
from unlabeled.methods.simclrv2_config import Augment, Head, SimCLRv2Config
from unlabeled.ops.distributed import gather, gather_with_grad, rank
from unlabeled.ops.ema import ema_update
from unlabeled.ops.labels import known, known_accuracy, known_cross_entropy
from unlabeled.ops.precision import at_least_float32

# ---- network (section 3: the projection head is three layers deep, and its first layer is kept for fine-tuning)


class ProjectionHead(nn.Module):
    """Linear-BN-ReLU layers as wide as their input, then Linear-BN without shift: [b, C] -> [b, out_dim]."""

    def __init__(self, width: int, cfg: Head) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for number in range(1, cfg.layers + 1):
            last = number == cfg.layers
            linear = nn.Linear(width, cfg.out_dim if last else width, bias=False)
            nn.init.normal_(linear.weight, std=cfg.init_std)
            norm = nn.BatchNorm1d(linear.out_features)
            if last:
                norm.register_parameter("bias", None)
            self.layers.append(nn.Sequential(linear, norm, nn.Identity() if last else nn.ReLU()))

    def forward(self, h: Tensor, tap: int | None = None) -> Tensor:
        """Return the output after `tap` layers (0: h itself; None: all)."""
        for layer in self.layers[:tap]:
            h = layer(h)
        return h


class Tapped(nn.Module):
    """Backbone and the first `tap` layers of the head: [b, 3, S, S] -> [b, C]."""

    def __init__(self, backbone: BackboneModule, head: ProjectionHead, tap: int) -> None:
        super().__init__()
        self.backbone, self.head, self.tap = backbone, head, tap
        self.num_features = backbone.num_features

    def forward(self, x: Tensor) -> Tensor:
        """Return the features at the tap."""
        return self.head(self.backbone(x), self.tap)


# ---- loss (section 2.1 and the published objective)


class Contrast(NamedTuple):
    """Per-image losses [n] of the two directions and the logits [n, N] of view 1 against view 2 of all N images."""

    view1: Tensor
    view2: Tensor
    logits: Tensor

    @property
    def loss(self) -> Tensor:
        """Sum of the two directions, mean over this rank's images."""
        return (self.view1 + self.view2).mean()


def normalize(x: Tensor) -> Tensor:
    """Scale the rows of x [n, d] to unit length in at least float32; rows near zero stay small instead of exploding."""
    x = at_least_float32(x)
    return x * x.square().sum(1, keepdim=True).clamp_min(1e-12).rsqrt()


def own_columns(n: int, device: torch.device) -> Tensor:
    """Return where this rank's n images stand among the gathered ones, int64 [n]."""
    return rank() * n + torch.arange(n, device=device)


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Contrast:
    """Contrast views a, b [n, d] of this rank's images with both views of the images of all ranks.

    Every view has its partner as the positive and 2N - 2 negatives, N images over all ranks. The gradient of the mean
    of the ranks' losses is that of one process with the whole batch.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = at_least_float32(a), at_least_float32(b)
        all_a, all_b = gather_with_grad(a), gather_with_grad(b)
        own = own_columns(len(a), a.device)
        ab, ba = a @ all_b.T / temperature, b @ all_a.T / temperature
        aa, bb = (x @ all_x.T / temperature for x, all_x in ((a, all_a), (b, all_b)))
        aa, bb = (x.scatter(1, own[:, None], float("-inf")) for x in (aa, bb))
        view1 = F.cross_entropy(torch.cat([ab, aa], 1), own, reduction="none")
        view2 = F.cross_entropy(torch.cat([ba, bb], 1), own, reduction="none")
    return Contrast(view1, view2, ab)


class KeyQueue(nn.Module):
    """The last `size` keys, first in first out; slots never written are ignored."""

    keys: Tensor
    pointer: Tensor
    written: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))

    def push(self, keys: Tensor) -> None:
        """Write keys [n, d] over the oldest ones."""
        size = len(self.keys)
        slots = (self.pointer + torch.arange(len(keys), device=keys.device)) % size
        self.keys[slots] = keys.to(self.keys.dtype)
        self.pointer.copy_((self.pointer + len(keys)) % size)
        self.written.copy_((self.written + len(keys)).clamp_max(size))

    def logits(self, queries: Tensor, temperature: float) -> Tensor:
        """Return queries [n, d] against all keys [n, size], -inf where nothing was written."""
        empty = torch.arange(len(self.keys), device=queries.device) >= self.written
        return (queries @ self.keys.to(queries.dtype).T / temperature).masked_fill(empty, float("-inf"))


def memory_contrast(
    query1: Tensor, query2: Tensor, all_key1: Tensor, all_key2: Tensor, queue: KeyQueue, temperature: float
) -> Contrast:
    """Contrast unit queries [n, d] with the EMA network's keys of the other view [N, d] and with the queue."""
    with torch.autocast(query1.device.type, enabled=False):
        own = own_columns(len(query1), query1.device)
        current1, current2 = query1 @ all_key2.T / temperature, query2 @ all_key1.T / temperature
        view1 = F.cross_entropy(torch.cat([current1, queue.logits(query1, temperature)], 1), own, reduction="none")
        view2 = F.cross_entropy(torch.cat([current2, queue.logits(query2, temperature)], 1), own, reduction="none")
    return Contrast(view1, view2, current1)


def contrast_metrics(logits: Tensor) -> dict[str, Tensor]:
    """Return accuracy and entropy (nats) of picking the partner among all images, from logits [n, N]."""
    logits = logits.detach()
    log_p = logits.log_softmax(1)
    return {
        "contrast_accuracy": (logits.argmax(1) == own_columns(len(logits), logits.device)).double().mean(),
        "contrast_entropy": -(log_p.exp() * log_p).sum(1).mean(),
    }


# ---- the method


class SimCLRv2(Method):
    """SimCLRv2's first stage, with the optional momentum memory and online linear probe."""

    Config = SimCLRv2Config
    couples_batch = True

    @classmethod
    def streams(cls, cfg: SimCLRv2Config) -> dict[str, Stream]:
        """Two crops of every image; labels only for the online probe."""
        crop = geometry.build(cfg.crop)
        return {"train": Stream((crop, crop), labels=cfg.online_probe)}

    def __init__(self, cfg: SimCLRv2Config, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__()
        self.cfg, self.info = cfg, info
        self.backbone = make_backbone()
        self.head = ProjectionHead(width_of(self.backbone), cfg.head)
        if cfg.memory:
            keys = 2 * info.streams["train"].batch
            if cfg.memory.size < keys:
                raise UserError(f"method.memory.size {cfg.memory.size} is less than the {keys} keys of one update")
            self.momentum_backbone = copy.deepcopy(self.backbone).requires_grad_(False)
            self.momentum_head = copy.deepcopy(self.head).requires_grad_(False)
            self.queue = KeyQueue(cfg.memory.size, cfg.head.out_dim)
        if cfg.online_probe:
            if info.classes is None:
                raise UserError("method.online_probe needs labels, and the data card names no classes")
            self.probe = nn.Linear(self.backbone.num_features, info.classes)

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        """Two views [b, 3, S, S] of this rank's images, in [0, 1] unless `augment.normalize`."""
        train = batch["train"]
        views = {f"view{i}": self._view(crop, step) for i, crop in enumerate(train.crops, 1)}
        return views if train.label is None else {**views, "label": train.label}

    def _view(self, crop: Tensor, step: Step) -> Tensor:
        aug: Augment = self.cfg.augment
        total, mine = self.info.share(len(crop))
        jitter = gray = blur = None
        if aug.jitter > 0:
            s = aug.jitter
            jitter = photometric.draw_jitter(total, 0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s, aug.jitter_p, step.shared)
            gray = photometric.draw_chosen(total, aug.gray_p, step.shared)
        if aug.blur_p > 0:
            blur = photometric.draw_blur(total, aug.blur_p, aug.blur_sigma, step.shared, one_sigma=True)
        drawn = photometric.Drawn(jitter, gray, blur).rows(mine)
        mean, std = (self.info.mean, self.info.std) if aug.normalize else (None, None)
        return photometric.render(crop, drawn, aug.convention, mean=mean, std=std)

    def counts(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The known labels of both views, for the online probe."""
        return {"labels": 2 * known(views["label"])} if self.cfg.online_probe else {}

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        """Contrastive loss of the two views; both pass the network at once, so BatchNorm sees them together."""
        h = self.backbone(torch.cat([views["view1"], views["view2"]]))
        hidden1, hidden2 = self.head(h).chunk(2)
        unit1, unit2 = normalize(hidden1), normalize(hidden2)
        carry, temperature = {}, step.value(self.cfg.temperature)
        if self.cfg.memory:
            carry = self._keys(views)
            contrast = memory_contrast(unit1, unit2, carry["key1"], carry["key2"], self.queue, temperature)
        else:
            contrast = nt_xent(unit1, unit2, temperature)
        losses = Losses({"contrast": contrast.loss}, carry, contrast_metrics(contrast.logits))
        if self.cfg.online_probe:
            self._add_probe(losses, h, views["label"], self.mean_counts(views, step)["labels"])
        return losses

    @torch.no_grad()
    def _keys(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = self.momentum_head(self.momentum_backbone(torch.cat([views["view1"], views["view2"]])))
        key1, key2 = (gather(normalize(x)) for x in hidden.chunk(2))
        return {"key1": key1, "key2": key2}

    def _add_probe(self, losses: Losses, h: Tensor, label: Tensor, count: Tensor) -> None:
        logits, label = self.probe(h.detach()), label.repeat(2)
        losses.terms["probe"] = known_cross_entropy(logits, label, count)
        losses.metrics["probe_accuracy"] = known_accuracy(logits, label, count)

    def after_step(self, step: Step, carry: dict[str, Tensor]) -> dict[str, float]:
        """Queue the keys of view 1, then of view 2, then move the EMA network."""
        if self.cfg.memory:
            self.queue.push(torch.cat([carry["key1"], carry["key2"]]))
            decay = step.value(self.cfg.memory.decay)
            for teacher, student in ((self.momentum_backbone, self.backbone), (self.momentum_head, self.head)):
                ema_update(teacher, student, decay, buffers="copy")
        return {}

    def param_groups(self) -> list[Group]:
        """Everything under the recipe's rules, but the probe, which LARS does not adapt (its weight is decayed)."""
        names = [name for name, p in self.named_parameters() if p.requires_grad]
        probe = tuple(name for name in names if name.startswith("probe."))
        groups = [Group(tuple(name for name in names if name not in probe))]
        return [*groups, Group(probe, lars=False)] if probe else groups

    def exports(self) -> dict[str, Export]:
        """The backbone, and the backbone with the head's first layer (from which few labels are fine-tuned)."""
        mean, std = (self.info.mean, self.info.std) if self.cfg.augment.normalize else (None, None)
        image = Input(self.cfg.crop.size, mean, std)

        def backbone() -> nn.Module:
            return copy.deepcopy(self.backbone).eval()

        def tapped() -> nn.Module:
            return copy.deepcopy(Tapped(self.backbone, self.head, 1)).eval()

        return {"backbone": Export(backbone, "vector", image), "backbone+head1": Export(tapped, "vector", image)}
