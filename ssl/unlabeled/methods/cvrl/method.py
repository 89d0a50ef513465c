"""CVRL: contrast two clips of every video against the clips of all other videos.

Qian et al., "Spatiotemporal Contrastive Video Representation Learning", arXiv 2008.03800; where the paper and the
published code differ, this is the code. The loss is SimCLR's, as the sum of the two directions.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from unlabeled.augment import geometry, photometric
from unlabeled.data.batch import Batch, Stream
from unlabeled.data.clips import ClipPair
from unlabeled.methods.base import Export, Info, Losses, MakeBackbone, Method, Step, input_of, width_of
from unlabeled.methods.cvrl.config import Augment, CVRLConfig, Head
from unlabeled.methods.simclrv2 import contrast_metrics, normalize, nt_xent

# ---- network

_NORM_UPDATE = 0.003  # share of a batch in the running statistics of the head, which only training uses


def projection_head(width: int, cfg: Head) -> nn.Sequential:
    """Make hidden layers of Linear, BatchNorm and ReLU, then a Linear: [b, width] -> [b, out_dim]."""
    layers: list[nn.Module] = []
    for _ in range(cfg.layers):
        layers += [nn.Linear(width, cfg.hidden), nn.BatchNorm1d(cfg.hidden, momentum=_NORM_UPDATE), nn.ReLU()]
        width = cfg.hidden
    head = nn.Sequential(*layers, nn.Linear(width, cfg.out_dim))
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    return head


# ---- what is done to colours


def draw_changes(n: int, aug: Augment, i: int, random: torch.Generator) -> photometric.Drawn:
    """Draw what is done to n samples of view i, 0 or 1."""
    return photometric.Drawn(
        photometric.draw_jitter(n, aug.brightness, aug.contrast, aug.saturation, aug.hue, aug.jitter_p, random),
        photometric.draw_chosen(n, aug.gray_p, random),
        photometric.draw_blur(n, aug.blur_p[i], aug.blur_sigma, random),
        photometric.draw_chosen(n, aug.solarize_p[i], random),
    )


# ---- what is told of the loss


def partner_metrics(logits: Tensor) -> dict[str, Tensor]:
    """Return accuracy and entropy (nats) of picking the other clip among those of all videos, from logits [n, N]."""
    p = logits.detach().softmax(1)
    # with the published code's 1e-8 in the logarithm
    return contrast_metrics(logits) | {"contrast_entropy": -(p * (p + 1e-8).log()).sum(1).mean()}


# ---- the method


class CVRL(Method):
    """Two clips of a video, drawn jointly in time, each with one draw of crop and colours for all of its frames."""

    Config = CVRLConfig
    couples_batch = True

    @classmethod
    def streams(cls, cfg: CVRLConfig) -> dict[str, Stream]:
        """Two clips of every video, each with a crop of its own."""
        crop, clip = geometry.build(cfg.crop), cfg.clip
        pair = ClipPair(clip.frames, clip.stride, cfg.interval.power, cfg.interval.law, per_second=clip.per_second)
        return {"train": Stream((crop, crop), clips=pair)}

    def __init__(self, cfg: CVRLConfig, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__()
        self.cfg, self.info = cfg, info
        self.backbone = make_backbone()
        self.input = input_of(self.backbone, cfg.crop.size, None, cfg.clip)
        self.head = projection_head(width_of(self.backbone), cfg.head)

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        """Two clips [b, 3, T, S, S] of this rank's videos, in [0, 1], or as an inflated network was trained."""
        mean, std = self.input.mean, self.input.std
        return {f"view{i + 1}": photometric.to_input(self._view(clip, i, step), mean, std)
                for i, clip in enumerate(batch["train"].crops)}

    def _view(self, clip: Tensor, i: int, step: Step) -> Tensor:
        if self.cfg.augment.per_frame:
            frames = clip.transpose(1, 2)
            return self._changed(frames.flatten(0, 1), i, step).unflatten(0, frames.shape[:2]).transpose(1, 2)
        return self._changed(clip, i, step)

    def _changed(self, samples: Tensor, i: int, step: Step) -> Tensor:
        total, mine = self.info.share(len(samples))
        drawn = draw_changes(total, self.cfg.augment, i, step.shared).rows(mine)
        return photometric.render(samples, drawn, "simclr")  # its colours are CVRL's too

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        """Contrastive loss of the two clips; both pass the network at once, so BatchNorm sees them together."""
        z1, z2 = self.head(self.backbone(torch.cat([views["view1"], views["view2"]]))).chunk(2)
        contrast = nt_xent(normalize(z1), normalize(z2), step.value(self.cfg.temperature))
        return Losses({"contrast": contrast.loss}, metrics=partner_metrics(contrast.logits))

    def exports(self) -> dict[str, Export]:
        """The backbone, for clips as they were trained on."""
        return {"backbone": Export(lambda: copy.deepcopy(self.backbone).eval(), "vector", self.input)}
