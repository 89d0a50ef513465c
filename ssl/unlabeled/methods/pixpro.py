"""PixPro: cells of two views that lie near each other in the image must agree, after a propagation over one view.

Xie et al., "Propagate Yourself: Exploring Pixel-Level Consistency for Unsupervised Visual Representation Learning",
arXiv 2011.10043. Where the paper and its published code differ, this is the code. What the code lacks (PixContrast, the
pyramid) is built from the paper; docs/pixpro.md has the table from paper to code, and what is unchecked.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from unlabeled.augment import geometry, photometric
from unlabeled.backbones.maps import maps
from unlabeled.data.batch import Batch, Stream
from unlabeled.errors import UserError
from unlabeled.methods.base import BackboneModule, Export, Info, Losses, MakeBackbone, Method, Step, input_of
from unlabeled.methods.pixpro_config import Byol, Contrast, Fpn, InfoNce, PixProConfig, Propagation
from unlabeled.ops.cells import coordinates, distances
from unlabeled.ops.distributed import gather, rank
from unlabeled.ops.ema import ema_update, rising
from unlabeled.ops.frozen import freeze_unreached
from unlabeled.ops.machine.activations import branch
from unlabeled.ops.precision import at_least_float32

SMALLEST = 4  # cells along a side of the map below which there is little to compare

# ---- network


def mlp(*widths: int, output_bias: bool = True) -> nn.Sequential:
    """Make 1x1 convolutions between maps of these widths, with BatchNorm and ReLU between them; one width: none."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, len(widths)):
        last = number == len(widths) - 1
        layers[f"linear{number}"] = nn.Conv2d(widths[number - 1], widths[number], 1, bias=output_bias or not last)
        if not last:
            layers[f"bn{number}"] = nn.BatchNorm2d(widths[number])
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


class Encoder(nn.Module):
    """Backbone and optional pyramid: [b, 3, S, S] -> the backbone's last map and the maps whose cells are compared.

    Parameters that none of these depends on, such as a norm behind the pool, are frozen. Raises UserError if a map is
    smaller than 4 x 4 at images of `size` or the backbone has too few stages.
    """

    def __init__(self, backbone: BackboneModule, cfg: Fpn | None, size: int) -> None:
        super().__init__()
        self.backbone, self.blocks, self.fpn = backbone, [], None
        self.levels: tuple[int, ...] = (5,)
        if cfg is not None:
            needed = 6 - min(*cfg.levels, 5)
            stages = getattr(backbone, "feature_info", [])[-needed:]
            if len(stages) < needed:
                raise UserError(f"method.fpn.levels {list(cfg.levels)}: the backbone names only {len(stages)} stages")
            self.levels, self.blocks = tuple(sorted(cfg.levels)), [stage["module"] for stage in stages[:-1]]
            self.fpn = FeaturePyramidNetwork([stage["num_chs"] for stage in stages], cfg.width)
        last, compared = self.eval()(torch.zeros(1, 3, size, size))
        self.width, self.widths = last.shape[1], [x.shape[1] for x in compared]
        self.shapes = [(x.shape[2], x.shape[3]) for x in compared]
        side = min(min(shape) for shape in self.shapes)
        if side < SMALLEST:
            raise UserError(
                f"pixpro compares the cells of the {'pyramid' if cfg else 'last'} map, only {side} x {side} here at "
                f"method.crop.size {size}; it needs {SMALLEST} x {SMALLEST} or, better, 7 x 7. For small images set "
                f"backbone.stem=cifar (ResNets); else take larger crops: method.crop.size={SMALLEST * -(-size // side)}"
            )
        freeze_unreached(self.train(), [last, *compared])

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the last map [b, C, H, W] and the maps to compare, the finest first."""
        stages = maps(self.backbone, x, self.blocks)
        if self.fpn is None:
            return stages[-1], stages
        pyramid = self.fpn(OrderedDict((str(6 - len(stages) + i), y) for i, y in enumerate(stages)))
        pyramid["6"] = F.max_pool2d(pyramid["5"], 1, 2)
        return stages[-1], [pyramid[str(level)] for level in self.levels]


class Finest(nn.Module):
    """The pyramid's finest compared map, for the export: [b, 3, S, S] -> [b, width, H, W]."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """Return that map."""
        return self.encoder(x)[1][0]


class Projections(NamedTuple):
    """What a network makes of images: a projected map [b, dim, H, W] per level, and one for the instance branch."""

    pixels: list[Tensor]
    instance: Tensor | None


class Network(nn.Module):
    """Encoder, a projector per level and one for the instance branch, all on maps: [b, 3, S, S] -> Projections."""

    def __init__(self, encoder: Encoder, cfg: PixProConfig) -> None:
        super().__init__()
        widths = [*encoder.widths, *([encoder.width] if cfg.instance else [])]
        heads = [mlp(width, cfg.hidden, cfg.dim, output_bias=cfg.head_output_bias) for width in widths]
        self.encoder = encoder
        self.instance = heads.pop() if cfg.instance else None
        self.projectors = nn.ModuleList(heads)

    def forward(self, x: Tensor) -> Projections:
        """Return the projections."""
        last, compared = self.encoder(x)
        pixels = [head(y) for head, y in zip(self.projectors, compared, strict=True)]
        return Projections(pixels, None if self.instance is None else self.instance(last))


# ---- pixel propagation (section 3.2 of the paper)


def cells(x: Tensor) -> Tensor:
    """Return the unit vectors of the cells of a map [b, D, H, W], row by row, in at least float32: [b, D, H W]."""
    return F.normalize(at_least_float32(x).flatten(2), dim=1, eps=1e-12)


def pooled(x: Tensor) -> Tensor:
    """Return the unit vector of the mean of a map [b, D, H, W], in at least float32: [b, D]."""
    return cells(at_least_float32(x).mean((2, 3), keepdim=True)).squeeze(2)


class PixelPropagation(nn.Module):
    """Every cell becomes the sum of all cells of its map, transformed and weighted by similarity: [b, D, H, W], same.

    No softmax and no division: only the direction of the result is used.
    """

    def __init__(self, dim: int, cfg: Propagation, output_bias: bool = True) -> None:
        super().__init__()
        self.cfg = cfg
        self.transform = mlp(*[dim] * (cfg.transform_layers + 1), output_bias=output_bias)

    def similarity(self, x: Tensor) -> Tensor:
        """Return the weights of all pairs of cells [b, P, P], 1 of a cell with itself."""
        x = cells(x)
        s = (x.transpose(1, 2) @ x).clamp_min(self.cfg.clamp)
        return (s + 1e-6 if self.cfg.sharpness < 1 else s).pow(self.cfg.sharpness)  # a root is steep at 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the propagated map, not scaled."""
        value = self.transform(x)
        with torch.autocast(x.device.type, enabled=False):
            return (cells(value) @ self.similarity(x)).unflatten(2, x.shape[2:])  # the weights are symmetric


# ---- losses; q and k are cells [b, D, P] of the online and the key network, positive [b, P, P] bool of their pairs


def consistency(q: Tensor, k: Tensor, positive: Tensor) -> Tensor:
    """Return -2 times the mean cosine of the positive pairs, mean over images, 0-d; images without a pair count 0."""
    agree = (q.transpose(1, 2) @ k * positive).sum((1, 2)) / (positive.sum((1, 2)) + 1e-6)
    return -2 * agree.mean()


def pixel_contrast(q: Tensor, k: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """Return each cell's -log of the share of its positives among the other view's cells, [b, P]; 0 without one."""
    logits = q.transpose(1, 2) @ k / temperature
    chosen = positive | ~positive.any(2, keepdim=True)  # without a positive the share is 1 and the loss 0
    return logits.logsumexp(2) - logits.masked_fill(~chosen, float("-inf")).logsumexp(2)


def mean_of_pairs(loss1: Tensor, loss2: Tensor, positive: Tensor, images: Tensor) -> Tensor:
    """Average both losses [b, P] over cells with a positive, sum, and divide by the `images` that have any, 0-d."""
    first, second = positive.any(2).sum(1).clamp_min(1), positive.any(1).sum(1).clamp_min(1)
    pair = (loss1.sum(1) / first + loss2.sum(1) / second) / 2
    return pair.sum() / images.to(pair.dtype)


def info_nce(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of finding each query's own key [b, D] among those of all processes, 0-d."""
    own = rank() * len(key) + torch.arange(len(key), device=key.device)
    return F.cross_entropy(query @ gather(key).T / temperature, own)


def watch(q: Tensor, k: Tensor, positive: Tensor, pairs: Tensor, others: Tensor) -> dict[str, Tensor]:
    """Return the spread of the keys (0: collapsed) and the mean cosines of the positive `pairs` and of the `others`."""
    cosine, sigma = q.detach().transpose(1, 2) @ k, k.transpose(0, 1).flatten(1).std(1).mean() * k.shape[1] ** 0.5
    near, other = ((cosine * p).sum() / count for p, count in ((positive, pairs), (~positive, others)))
    return {"sigma": sigma, "cosine_positive": near, "cosine_other": other}


# ---- the method


class PixPro(Method):
    """PixPro or PixContrast, with the optional instance branch and pyramid."""

    Config = PixProConfig

    @classmethod
    def streams(cls, cfg: PixProConfig) -> dict[str, Stream]:
        """Two crops of every image."""
        crop = geometry.build(cfg.crop)
        return {"train": Stream((crop, crop))}

    def __init__(self, cfg: PixProConfig, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__()
        self.cfg, self.info = cfg, info
        self.couples_batch = isinstance(cfg.instance, InfoNce)
        backbone = make_backbone()
        self.input = input_of(backbone, cfg.crop.size, info)
        self.online = Network(Encoder(backbone, cfg.fpn, cfg.crop.size), cfg)
        self.key = copy.deepcopy(self.online).requires_grad_(False)
        # only the online network has a propagation (one per level) and the published instance branch's predictor
        bias, pixel = cfg.head_output_bias, cfg.pixel
        self.queries = nn.ModuleList(
            nn.Identity() if isinstance(pixel, Contrast) else PixelPropagation(cfg.dim, pixel, bias)
            for _ in self.online.projectors
        )
        predictor = [cfg.instance.predictor_hidden, cfg.dim] if isinstance(cfg.instance, Byol) else []
        self.predictor = mlp(cfg.dim, *predictor, output_bias=bias)

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        """Two views [b, 3, S, S] and where they lie in their images, [b, 4] (see `ops.cells`)."""
        (crop1, crop2), (boxes1, boxes2) = batch["train"].crops, batch["train"].boxes
        assert boxes1 is not None and boxes2 is not None
        places = {"place1": coordinates(boxes1), "place2": coordinates(boxes2)}
        return {"view1": self._view(crop1, 0, step), "view2": self._view(crop2, 1, step), **places}

    def _view(self, crop: Tensor, i: int, step: Step) -> Tensor:
        aug, random = self.cfg.augment, step.shared
        total, mine = self.info.share(len(crop))
        drawn = photometric.Drawn(
            photometric.draw_jitter(total, aug.brightness, aug.contrast, aug.saturation, aug.hue, aug.jitter_p, random),
            photometric.draw_chosen(total, aug.gray_p, random),
            photometric.draw_blur(total, aug.blur_p[i], aug.blur_sigma, random),
            photometric.draw_chosen(total, aug.solarize_p[i], random),
        ).rows(mine)
        return photometric.render(crop, drawn, mean=self.input.mean, std=self.input.std)

    def _positive(self, i: int, views: dict[str, Tensor]) -> Tensor:
        """Return which pairs of cells of level i are positive, bool [b, P, P]."""
        shape = self.online.encoder.shapes[i]
        return distances(views["place1"], views["place2"], shape) < self.cfg.threshold

    def counts(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """Per level: images with an overlap, positive pairs of cells, and the other pairs."""
        positive = [self._positive(i, views) for i in range(len(self.queries))]
        images = {f"images{i}": p.flatten(1).any(1).sum() for i, p in enumerate(positive)}
        pairs = {f"pairs{i}": p.sum() for i, p in enumerate(positive)}
        return images | pairs | {f"others{i}": (~p).sum() for i, p in enumerate(positive)}

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        """Every view passes both networks by itself; each direction compares one view's queries with the other's keys.

        The key network is in training mode: its BatchNorm takes the statistics of each batch. Levels are averaged.
        """
        with branch("online network"):
            projections = [self.online(views[name]) for name in ("view1", "view2")]
        with torch.no_grad(), branch("key network"):
            keys = [self.key(views[name]) for name in ("view1", "view2")]
        levels = [self._pixels(i, projections, keys, views, step) for i in range(len(self.queries))]
        mean = {name: torch.stack([level[name] for level in levels]).mean() for name in levels[0]}
        losses = Losses({"pixel": mean.pop("loss")}, metrics=mean)
        if self.cfg.instance is not None:
            losses.terms["instance"] = self.cfg.instance.weight * self._instance(projections, keys, step)
        return losses

    def _pixels(
        self, i: int, projections: list[Projections], keys: list[Projections], views: dict[str, Tensor], step: Step
    ) -> dict[str, Tensor]:
        """Return loss and metrics of level i."""
        cfg, query = self.cfg.pixel, [self.queries[i](s.pixels[i]) for s in projections]
        counts = self.mean_counts(views, step)
        images, pairs, others = (counts[f"{name}{i}"] for name in ("images", "pairs", "others"))
        with torch.autocast(views["place1"].device.type, enabled=False):
            positive = self._positive(i, views)
            back = positive.transpose(1, 2)
            q1, q2, k1, k2 = (cells(x) for x in [*query, *(s.pixels[i] for s in keys)])
            if isinstance(cfg, Contrast):
                a, b = (pixel_contrast(*x, step.value(cfg.temperature)) for x in ((q1, k2, positive), (q2, k1, back)))
                loss = mean_of_pairs(a, b, positive, images)
            else:
                loss = consistency(q1, k2, positive) + consistency(q2, k1, back)
            return {"loss": loss, **watch(q1, k2, positive, pairs, others)}

    def _instance(self, projections: list[Projections], keys: list[Projections], step: Step) -> Tensor:
        """Compare the views as wholes: the mean over places comes after the heads, which work on maps."""
        cfg, query = self.cfg.instance, [self.predictor(s.instance) for s in projections]
        with torch.autocast(query[0].device.type, enabled=False):
            z1, z2, k1, k2 = (pooled(x) for x in [*query, *(s.instance for s in keys)])
            if isinstance(cfg, InfoNce):
                return info_nce(z1, k2, step.value(cfg.temperature)) + info_nce(z2, k1, step.value(cfg.temperature))
            return -2 * ((z1 * k2).sum(1).mean() + (z2 * k1).sum(1).mean())

    def after_step(self, step: Step, carry: dict[str, Tensor]) -> dict[str, float]:
        """Move the key network: the published code does so before the next update's pass, with the same numbers."""
        momentum = step.value(rising(self.cfg.key_momentum), ahead=1)
        ema_update(self.key, self.online, momentum, "keep")
        return {"key_momentum": momentum}

    def exports(self) -> dict[str, Export]:
        """The online backbone without heads and, if there is a pyramid, backbone and pyramid."""
        encoder = self.online.encoder
        backbone = {"backbone": Export(lambda: copy.deepcopy(encoder.backbone).eval(), "vector", self.input)}
        fpn = {"fpn": Export(lambda: copy.deepcopy(Finest(encoder)).eval(), "map", self.input)}
        return backbone if encoder.fpn is None else backbone | fpn
