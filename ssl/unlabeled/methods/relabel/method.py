"""ReLabel: a classifier learns several localised labels per image, read from a stored label map (arXiv 2101.05022).

Yun et al., "Re-labeling ImageNet: from Single to Multi-Labels, from Global to Localized Labels", CVPR 2021, and
naver-ai/relabel_imagenet. `unlabeled labelmaps` wrote, once and for all epochs, what a strong classifier says of every
cell of every image; the crop's target is pooled from that inside its box. `targets: label` is the baseline.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unlabeled.augment import geometry, lighting, photometric, regularise
from unlabeled.data.batch import Batch, Stream
from unlabeled.data.records.labelmaps import KIND, classes_of
from unlabeled.data.records.rows import Record
from unlabeled.errors import UserError
from unlabeled.methods.base import Export, Info, Losses, MakeBackbone, Method, Step, input_of
from unlabeled.methods.classifier import Classifier
from unlabeled.methods.relabel.config import RelabelConfig
from unlabeled.ops.labels import known, known_accuracy, known_soft_cross_entropy, likeliest, one_hot
from unlabeled.ops.machine.memory import to_device
from unlabeled.ops.targets.label_pooling import edges, pool, whole


class Relabel(Method):
    """Soft cross-entropy with the pooled label map; one crop of every image, its own label is not looked at."""

    Config = RelabelConfig

    @classmethod
    def streams(cls, cfg: RelabelConfig) -> dict[str, Stream]:
        """One crop of every image, with its label map or, for the baseline, its label."""
        maps = cfg.targets == "labelmap"
        records = (Record(KIND),) if maps else ()
        return {"train": Stream((geometry.build(cfg.crop),), labels=not maps, records=records)}

    def __init__(self, cfg: RelabelConfig, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__()
        self.cfg, self.info, self.classes = cfg, info, _classes(cfg, info)
        network = make_backbone()
        self.input = input_of(network, cfg.crop.size, info)
        self.classifier = Classifier(network, self.classes)
        self.classifier.linear.reset_parameters()

    # ---- views and targets

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        """The crops [b, 3, S, S] and their targets [b, C], zero where a label is unknown."""
        train, cfg = batch["train"], self.cfg
        crop = train.crops[0]
        total, mine = self.info.share(len(crop))
        jitter = photometric.draw_jitter(total, *cfg.color_jitter, 1.0, step.shared)
        view = photometric.render(crop, photometric.Drawn(jitter).rows(mine))
        if cfg.lighting > 0:
            view = lighting.light(view, lighting.draw_lighting(total, cfg.lighting, step.shared)[mine])
        view = photometric.to_input(view, self.input.mean, self.input.std)
        return self._mixed({"view": view, "target": self._target(train)}, step)

    def _target(self, train: Batch) -> Tensor:
        """The classes that the teacher saw in the crops, or the images' labels, float32 [b, C]."""
        if self.cfg.targets == "label":
            assert train.label is not None
            return one_hot(train.label, self.classes, self.cfg.smoothing)
        boxes = train.boxes[0]
        assert boxes is not None
        logit, index = (to_device(train.records[KIND][field], boxes.device) for field in ("logit", "index"))
        where = edges(boxes) if self.cfg.pooling == "box" else whole(logit)
        return pool(logit, index, where, self.classes).softmax(1)

    def _mixed(self, views: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
        """CutMix with the image beside it, by one box for the global batch; none in the last epochs."""
        cut, (view, target) = self.cfg.cutmix, views.values()
        if cut is not None and cut.off_last_epochs >= step.epochs:
            raise UserError(f"method.cutmix has no effect: it is off in the last {cut.off_last_epochs} epochs, and the "
                            f"run has {step.epochs}; lower method.cutmix.off_last_epochs, or leave cutmix out")
        if cut is None or step.epoch >= step.epochs - cut.off_last_epochs:
            return views
        if self.info.world > 1 and len(view) % 2:
            raise UserError(f"method.cutmix pairs images that stand beside each other, but every process has "
                            f"{len(view)} of them at a time; choose data.train.batch so that the number is even")
        mixes = torch.rand((), generator=step.shared) < cut.p
        box = regularise.draw_cut(view.shape[2], view.shape[3], cut.beta, step.shared)
        if not mixes:
            return views
        mixed, target = regularise.paste(view, target, beside(view), box)
        return {"view": mixed, "target": target}

    # ---- loss

    def counts(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The images that have a target, and the mass of the targets: mixed with an unknown label, they have less."""
        target = views["target"]
        images = known(likeliest(target))
        maps = self.cfg.targets == "labelmap"  # every image has one, whose float32 sum is 1 but for its rounding
        return {"images": images, "mass": images if maps else target.sum(dtype=torch.float64)}

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        """Mean cross-entropy, and how often network and target have the same first class."""
        logits, target, counts = self.classifier(views["view"]), views["target"], self.mean_counts(views, step)
        return Losses(
            {"labels": known_soft_cross_entropy(logits, target, counts["mass"])},
            metrics={"accuracy": known_accuracy(logits, likeliest(target), counts["images"])},
        )

    def exports(self) -> dict[str, Export]:
        """The classifier, and the network without it."""
        return self.classifier.exports(self.input)


def _classes(cfg: RelabelConfig, info: Info) -> int:
    """Return how many classes the targets tell apart. Raises UserError if nothing says it."""
    about = info.streams["train"].records.get(KIND) if cfg.targets == "labelmap" else None
    if about is None and info.classes is None:
        raise UserError("relabel trains a classifier, and neither label maps (data.train.records.labelmap=FOLDER) nor "
                        "the data card name classes")
    return classes_of(about) if about is not None else info.classes or 0


def beside(images: Tensor) -> Tensor:
    """Return each image's partner in a batch, int64 [b]: the first and second have each other, the third and fourth ...

    A last one without a partner has itself. Batches are in random order, so it is a random image.
    """
    return (torch.arange(len(images), device=images.device) ^ 1).clamp_max(len(images) - 1)
