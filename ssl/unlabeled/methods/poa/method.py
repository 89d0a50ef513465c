"""POA: a teacher, an intact student, and an elastic student that is another part of it at every update.

Zhang et al., "POA: Pre-training Once for Models of All Sizes", arXiv 2408.01031 (ECCV 2024); where the published code
differs from the paper, the code is followed (docs/poa.md lists where). Without the elastic student it is DINOv2
(arXiv 2304.07193) with one head for images and patches.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from unlabeled.augment import geometry, photometric
from unlabeled.backbones.elastic.network import ElasticNetwork
from unlabeled.backbones.elastic.random_depth import Depth
from unlabeled.backbones.elastic.sizes import Size
from unlabeled.data.batch import Batch, Stream
from unlabeled.errors import UserError
from unlabeled.methods.base import Block, Export, Group, Info, Losses, MakeBackbone, Method, Step, input_of
from unlabeled.methods.poa.config import POAConfig
from unlabeled.methods.poa.losses import cross_view_loss, koleo, patch_loss, same_view_loss
from unlabeled.methods.poa.masks import draw_masks
from unlabeled.methods.poa.networks import Network, Opinion
from unlabeled.methods.poa.targets import Centering, Targets, by_sinkhorn, entropy, targets_of_blocks
from unlabeled.methods.poa.views import Views, hidden_tokens, views_of_blocks
from unlabeled.ops.ema import ema_update
from unlabeled.ops.machine.activations import branch, is_measured
from unlabeled.ops.machine.memory import memory_of_machine, to_device
from unlabeled.ops.random import generator, seed_of

# probabilities of blur and solarisation of the first global crop, the second one, and the local ones (section 4.1)
_BLUR = {"effective": (0.0, 0.9, 0.5), "paper": (1.0, 0.1, 0.5)}
_SOLARIZE = (0.0, 0.2, 0.0)
_BLUR_TAPS, _BLUR_SIGMA = 9, (0.1, 2.0)  # pixels


class POA(Method):
    """Self-distillation of a network and of its sub-networks."""

    Config = POAConfig
    couples_batch = True  # Sinkhorn looks at all images of an update

    @classmethod
    def streams(cls, cfg: POAConfig) -> dict[str, Stream]:
        """Two global crops, then the local ones."""
        crop, local = geometry.build(cfg.crop), geometry.build(cfg.local_crop)
        return {"train": Stream((crop, crop, *[local] * cfg.local_crops))}

    def __init__(self, cfg: POAConfig, make_backbone: MakeBackbone, info: Info) -> None:
        super().__init__()
        self.cfg, self.info = cfg, info
        backbone = make_backbone()
        if not isinstance(backbone, ElasticNetwork):
            raise UserError(f"poa needs an elastic backbone, and {type(backbone).__name__} is none: take elastic_vit_l "
                            "or the like")
        refuse_unfit(cfg, backbone, info)
        self.input = input_of(backbone, cfg.crop.size, info)
        self.cells = backbone.cells(cfg.crop.size)
        self.student = Network(backbone, cfg)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.centerings = nn.ModuleList(Centering(count, cfg.center_momentum) for count in cfg.prototypes
                                        if cfg.targets == "centering")

    def train(self, mode: bool = True) -> POA:
        """Set the mode; the teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    # ---- views (section 4.1)

    def views(self, batch: dict[str, Batch], step: Step) -> dict[str, Tensor]:
        """The global views [b, 3, S, S], the local ones, smaller, and the hidden patches of the global ones [b, T]."""
        views = {f"view{i}": self._view(crop, i, step) for i, crop in enumerate(batch["train"].crops)}
        patches = self.cfg.patches
        if patches is None or step.update < patches.start_epoch * step.updates_per_epoch:
            return views
        masks = []
        for block in self.info.blocks(len(views["view0"]), step.micro):
            random = np.random.Generator(np.random.Philox(seed_of(self.info.seed, "masks", step.update, block.number)))
            images = block.rows.stop - block.rows.start
            drawn = draw_masks(2 * images, self.cells, patches.masked, patches.ratio, random)
            masks.append(drawn.reshape(2, images, -1))
        first, second = to_device(torch.from_numpy(np.concatenate(masks, 1)), views["view0"].device)
        return {**views, "mask0": first, "mask1": second}

    def _view(self, crop: Tensor, i: int, step: Step) -> Tensor:
        kind = min(i, 2)
        total, mine = self.info.share(len(crop))
        drawn = photometric.Drawn(
            photometric.draw_jitter(total, 0.4, 0.4, 0.2, 0.1, 0.8, step.shared),
            photometric.draw_chosen(total, 0.2, step.shared),
            photometric.draw_blur(total, _BLUR[self.cfg.blur][kind], _BLUR_SIGMA, step.shared),
            photometric.draw_chosen(total, _SOLARIZE[kind], step.shared),
        ).rows(mine)
        taps = min(_BLUR_TAPS, 2 * crop.shape[-1] - 1)  # a blur reflects the crop at its border, once
        return photometric.render(crop, drawn, taps=taps, mean=self.input.mean, std=self.input.std)

    # ---- one step (section 3.3)

    def forward(self, views: dict[str, Tensor], step: Step) -> Losses:
        """The terms of both students, means over the blocks of this process."""
        blocks = self.info.blocks(len(views["view0"]), step.micro)
        seen = views_of_blocks(views, blocks, self.cells)
        with torch.no_grad(), branch("teacher"):
            targets, carry = self._targets(seen, step)
        parts = [self._terms(*of_block, step)
                 for of_block in zip(seen, targets_of_blocks(targets, seen), blocks, strict=True)]
        terms = {name: _mean(part[name] for part in parts) for name in parts[0]}
        return Losses(terms, carry, {"target_entropy": entropy(targets)})

    def _targets(self, seen: Sequence[Views], step: Step) -> tuple[list[Targets], dict[str, Tensor]]:
        """Return what the teacher says of all global crops, seen whole, by head, and what its centres move by."""
        crops: list[Tensor] = []
        patches: list[Tensor] = []
        for views in seen:
            features = self.teacher.backbone.features(views.crops)
            crops += features.vector.chunk(2)[::-1]  # row r of a crop teaches row r of the other one
            patches.append(hidden_tokens(features.tokens, views.hidden))
        rows, count = torch.cat([*crops, *patches]), sum(len(vectors) for vectors in crops)
        logits = [Targets(*head(rows).tensor_split([count])) for head in self.teacher.heads]
        temperature = step.value(self.cfg.teacher_temperature)
        if not self.centerings:
            return [by_sinkhorn(head, temperature) for head in logits], {}
        pairs = list(zip(self.centerings, logits, strict=True))
        sums = {f"{i}.{name}": x for i, (_, head) in enumerate(pairs) for name, x in Centering.sums(head).items()}
        return [centering(head, temperature) for centering, head in pairs], sums

    def _terms(self, views: Views, targets: list[Targets], block: Block, step: Step) -> dict[str, Tensor]:
        """Return the terms of one block of images."""
        cfg, grid = self.cfg, self.student.backbone.grid
        temperature = step.value(cfg.student_temperature)
        share = cfg.elastic.weight if cfg.elastic else 0.0
        intact = self._student(views, grid.full, block, step)
        students, parts = [intact], [(1 - share, self._taught(views, targets, intact, temperature))]
        if cfg.elastic is not None:
            drawn = grid.drawn(self.info.seed, block.number, step.update)
            elastic = self._student(views, grid.largest_part if is_measured() else drawn, block, step)
            students.append(elastic)
            if cfg.elastic.cross_view:
                parts.append((share, self._taught(views, targets, elastic, temperature)))
            if cfg.elastic.same_view:
                pairs = zip(intact.heads, elastic.heads, strict=True)
                parts.append((share, {"same_view": _mean(same_view_loss(*pair, temperature) for pair in pairs)}))
        if cfg.koleo:
            spread = [koleo(crop) for said in students for crop in said.vectors.chunk(2)]
            parts.append((cfg.koleo / len(students), {"koleo": torch.stack(spread).sum()}))
        names = dict.fromkeys(name for _, terms in parts for name in terms)
        return {name: torch.stack([w * terms[name] for w, terms in parts if name in terms]).sum() for name in names}

    def _student(self, views: Views, size: Size, block: Block, step: Step) -> Opinion:
        """Return what the sub-network of a size says of a block of images."""
        backbone = self.student.backbone
        random = generator(self.info.seed, "random depth", step.update, block.number, str(size))

        def depth(images: int) -> Depth | None:
            return backbone.random_depth(size, images, random) if self.training else None

        with branch("intact student" if size == backbone.grid.full else "elastic student"):
            opinion: Opinion = self.student(views, size, depth)
        return opinion

    def _taught(self, views: Views, targets: list[Targets], said: Opinion, temperature: float) -> dict[str, Tensor]:
        """Return what a student learns from the teacher, means over the heads."""
        pairs = list(zip(targets, said.heads, strict=True))
        terms = {"cross_view": _mean(cross_view_loss(target.crops, logits, temperature) for target, logits in pairs)}
        if self.cfg.patches is not None and views.hides:
            weight = views.weights()
            terms["patches"] = self.cfg.patches.weight * _mean(
                patch_loss(target.patches, logits, weight, temperature) for target, logits in pairs)
        return terms

    # ---- after the update

    def after_step(self, step: Step, carry: dict[str, Tensor]) -> dict[str, float]:
        """Move the centres by what the teacher said, which the next update sees, then the teacher."""
        for i, centering in enumerate(self.centerings):
            assert isinstance(centering, Centering)
            centering.move({name.removeprefix(f"{i}."): x for name, x in carry.items() if name.startswith(f"{i}.")})
        momentum = step.value(self.cfg.momentum)
        ema_update(self.teacher, self.student, momentum)
        return {"teacher_momentum": momentum}

    def param_groups(self) -> list[Group]:
        """Layers of the backbone, whose rates fall with their depth; heads; prototypes, which wait at first."""
        cfg = self.cfg
        names: dict[float, list[str]] = {}
        for name, layers in self.student.backbone.layers_behind().items():
            rate = cfg.layer_decay**layers * (cfg.patch_embed_lr if name.startswith("patch_embed.") else 1.0)
            names.setdefault(rate, []).append(f"student.backbone.{name}")
        heads = [f"student.heads.{name}" for name, _ in self.student.heads.named_parameters()]
        last = tuple(name for name in heads if ".prototypes." in name)
        return [
            *(Group(tuple(group), lr_mult=rate, part="backbone") for rate, group in names.items()),
            Group(tuple(name for name in heads if name not in last), part="heads"),
            Group(last, part="heads", frozen_epochs=cfg.freeze_prototypes),
        ]

    def exports(self) -> dict[str, Export]:
        """The teacher's backbone, which is what the paper evaluates and cuts, and the student's."""

        def backbone(network: Network) -> nn.Module:
            return copy.deepcopy(network.backbone).eval()

        return {
            "teacher": Export(lambda: backbone(self.teacher), "vector", self.input),
            "student": Export(lambda: backbone(self.student), "vector", self.input),
        }


def refuse_unfit(cfg: POAConfig, backbone: ElasticNetwork, info: Info) -> None:
    """Raise UserError, with the cure, for an elastic student without sizes, for blocks in which no image has a
    neighbour, and for more prototypes than this machine has memory."""
    if cfg.elastic is not None and len(backbone.grid.sizes) == 1:
        raise UserError("the backbone has one size, so there is no elastic student: give it smaller ones "
                        "(backbone.options), or set method.elastic=null")
    images = info.streams["train"].batch
    if cfg.koleo and images < 2 * info.block_count:
        raise UserError(f"{info.block_count} blocks of {images} images have one image each, without a neighbour: make "
                        "them fewer (train.blocks), or set method.koleo=0")
    # weights of the student and the teacher, gradients, and two moments
    need, memory = 5 * 4 * sum(cfg.prototypes) * (cfg.bottleneck + 1), memory_of_machine()
    if need > memory:
        raise UserError(f"method.prototypes {cfg.prototypes} of {cfg.bottleneck} numbers each take {need / 1e9:.0f} GB "
                        f"with gradients, moments and the teacher's copy, but this machine has {memory / 1e9:.0f} GB; "
                        "the paper's largest head has 65536")


def _mean(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(losses)).mean()
