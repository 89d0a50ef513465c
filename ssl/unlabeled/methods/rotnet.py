"""RotNet: tell by how many quarter turns an image was rotated.

Gidaris et al., "Unsupervised Representation Learning by Predicting Image Rotations", arXiv 1803.07728. To answer, a
network must know objects and how they usually stand. Its best features come from an inner block: the last ones keep
little but the rotation.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.augment import geometry
from unlabeled.augment.photometric import to_input
from unlabeled.backbones.intermediate import Intermediate, refuse_unknown
from unlabeled.data.batch import Batch, Stream
from unlabeled.methods.base import Export, Info, Losses, MakeBackbone, Method, Step, input_of, width_of
from unlabeled.methods.rotnet_config import RotNetConfig
from unlabeled.ops.machine.memory import to_device
from unlabeled.ops.precision import at_least_float32

ROTATIONS = 4

# ---- input (section 2.2: rotations by exact moves of pixels, so that no trace of interpolation gives them away)


def rotate_all(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x [b, C, S, S] in all four rotations, [4 b, C, S, S], image by image, and quarter turns int64 [4 b].

    Turns are counter-clockwise. Raises ValueError for images that are not square, whose shape would tell the rotation.
    """
    if x.shape[-1] != x.shape[-2]:
        raise ValueError(f"rotations need square images, given {tuple(x.shape[-2:])}")
    turned = torch.stack([torch.rot90(x, turns, (-2, -1)) for turns in range(ROTATIONS)], 1)
    return turned.flatten(0, 1), torch.arange(ROTATIONS, device=x.device).repeat(len(x))


def rotate_each(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the images of x [b, C, S, S] counter-clockwise by `turns` int64 [b] quarters. Raises as `rotate_all`."""
    turned, _ = rotate_all(x)
    return turned[torch.arange(len(x), device=x.device) * ROTATIONS + turns]


# ---- the method


class RotNet(Method):
    """Four-way classification of the rotation; crops and flips come before it."""

    Config = RotNetConfig

    @classmethod
    def streams(cls, cfg: RotNetConfig) -> dict[str, Stream]:
        """One crop of every image, without labels."""
        return {"train": Stream((geometry.build(cfg.crop),))}

    def __init__(self, cfg: RotNetConfig, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__()
        self.cfg, self.info = cfg, info
        self.backbone = make_backbone()
        self.input = input_of(self.backbone, cfg.crop.size, info)
        self.classifier = nn.Linear(width_of(self.backbone), ROTATIONS)
        if cfg.block is not None:
            refuse_unknown(self.backbone, cfg.block)

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        """The rotated images [4 b, 3, S, S], or [b, 3, S, S] with one rotation each, and their quarter turns."""
        crop = to_input(batch["train"].crops[0], self.input.mean, self.input.std)
        if self.cfg.all_rotations:
            view, turns = rotate_all(crop)
            return {"view": view, "turns": turns}
        total, mine = self.info.share(len(crop))
        turns = to_device(torch.randint(ROTATIONS, (total,), generator=step.shared)[mine], crop.device)
        return {"view": rotate_each(crop, turns), "turns": turns}

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        """Mean cross-entropy over all rows (equation 3)."""
        logits = self.classifier(self.backbone(views["view"]))
        logits = at_least_float32(logits)
        right = (logits.detach().argmax(1) == views["turns"]).double().mean()
        return Losses({"rotation": F.cross_entropy(logits, views["turns"])}, metrics={"rotation_accuracy": right})

    def exports(self) -> dict[str, Export]:
        """The backbone; before it the inner block that the recipe names."""
        def whole() -> nn.Module:
            return copy.deepcopy(self.backbone).eval()

        backbone = {"backbone": Export(whole, "vector", self.input)}
        block = self.cfg.block
        if block is None:
            return backbone
        return {block: Export(lambda: Intermediate(whole(), block).eval(), "map", self.input), **backbone}
