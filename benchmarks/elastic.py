"""What elastic networks and POA's updates cost beside plain networks and beside their own parts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import measure
from unlabeled.backbones.build import build_backbone
from unlabeled.backbones.elastic.sizes import Size
from unlabeled.config.read import read_recipe
from unlabeled.methods.base import Info, Step, StreamInfo
from unlabeled.methods.poa.losses import cross_view_loss, koleo, patch_loss, same_view_loss
from unlabeled.methods.poa.method import POA
from unlabeled.methods.poa.networks import Logits
from unlabeled.methods.poa.targets import Targets, by_sinkhorn
from unlabeled.methods.poa.views import hidden_tokens, views_of_blocks

QUESTION = ("how much slower is an elastic network than a plain one, how much faster is a small slice, and what does a "
            "POA update cost beyond its parts?")
PLAIN, HALF, UPDATE = 1.05, 0.35, 1.15  # bars
TAKEN = 7  # the update, counted from 0, whose sub-network is trained


class Shape(NamedTuple):
    """A network: width and blocks of the whole and of half of it, width of a head, side of images, patches and local
    crops in pixels, images of a forward pass and of an update."""

    width: int
    depth: int
    head_width: int
    side: int = 224
    patch: int = 16
    local: int = 96
    images: int = 4
    update_images: int = 2

    def overrides(self) -> list[str]:
        """Return what makes the published recipe one of this network, with an eighth of its prototypes."""
        half = self.width // 2
        return [f"backbone={{name: elastic_vit_l, options: {{widths: [{half}, {self.width}, {self.head_width}], "
                f"depths: [{self.depth // 2}, {self.depth}], head_width: {self.head_width}, img_size: {self.side}, "
                f"patch_size: {self.patch}, drop_path_rate: 0.2}}}}", "method.prototypes=[1024, 2048, 4096, 8192]",
                "method.patches.start_epoch=0", f"method.crop.size={self.side}", f"method.local_crop.size={self.local}",
                f"data.train.batch={self.update_images}"]


SHAPES = {"tiny, 192 wide, 12 blocks": Shape(192, 12, 32), "S, 384 wide, 12 blocks": Shape(384, 12, 64)}
QUICK = {"32 wide, 2 blocks": Shape(32, 2, 8, side=32, patch=8, local=16)}


def main(words: list[str] | None = None) -> int:
    """Time forward passes and updates in turns."""
    given = _arguments(words)
    measure.one_thread()
    report = measure.Report("elastic", "Elastic networks and POA's updates", QUESTION)
    forwards: list[list[str]] = []
    updates: list[list[str]] = []
    for name, shape in (QUICK if given.quick else SHAPES).items():
        work = Work(shape)
        forwards += _forwards(name, shape.images, measure.take_turns(work.forwards(), given.repeats))
        updates += _updates(name, work, measure.take_turns(work.updates(), given.repeats))
    report.say(f"**Forward passes** in evaluation, {shape.images} images of {shape.side} px, fp32. All but the half "
               "have the same weights, and timm's network takes them from the extracted one. Ratio: of the elastic "
               "network to the plain one, and of its half width and half depth to the whole.")
    report.table(["", "CPU ms per image ± quartiles", "ratio", "bar"], forwards)
    report.say(f"**POA update**, forward and backward on ready views: {shape.update_images} images, 2 global crops of "
               f"{shape.side} px, half of which have hidden patches, and 8 local ones of {shape.local} px; 4 heads of "
               "1024 to 8192 prototypes; random depth 0.2. Parts: each alone on ready tensors; students, heads and "
               "losses with their backward passes.")
    report.table(["", "CPU s ± quartiles", "share of the parts", "bar"], updates)
    report.finish(given.out)
    return 0


def _arguments(words: list[str] | None) -> argparse.Namespace:
    given = measure.arguments("elastic", QUESTION, repeats=9).parse_args(words)
    if given.quick:
        given.repeats = 1
    return given


def _forwards(name: str, images: int, seconds: Mapping[str, list[float]]) -> list[list[str]]:
    beside = {"timm": ("elastic", "timm", PLAIN), "extracted": ("elastic", "extracted", PLAIN),
              "half": ("half", "elastic", HALF)}
    rows = []
    for kind, taken in seconds.items():
        row = [f"{name}: {kind}", f"{1e3 * measure.median(taken) / images:.1f} ± {measure.spread(taken):.0%}", "", ""]
        if kind in beside:
            over, under, most = beside[kind]
            share = measure.ratio(seconds[over], seconds[under])
            row[2:] = [f"{share:.3f}", measure.bar(share, at_most=most)]
        rows.append(row)
    return rows


def _updates(name: str, work: Work, seconds: dict[str, list[float]]) -> list[list[str]]:
    update = seconds.pop("update")
    parts = [sum(of_round) for of_round in zip(*seconds.values(), strict=True)]
    rows = [[f"{name}: {part}", _seconds(taken), f"{measure.ratio(taken, parts):.0%}", ""]
            for part, taken in seconds.items()]
    share = measure.ratio(update, parts)
    rows.append([f"{name}: all parts", _seconds(parts), "100%", ""])
    rows.append([f"{name}: update, elastic student of {work.size}", _seconds(update), f"{share:.3f}",
                 measure.bar(share, at_most=UPDATE)])
    return rows


def _seconds(taken: list[float]) -> str:
    return f"{measure.median(taken):.3g} ± {measure.spread(taken):.0%}"


class Work:
    """POA's method for one shape on ready views, its parts on ready tensors, and plain networks of the same shape."""

    def __init__(self, shape: Shape) -> None:
        recipe = read_recipe("poa-vit-l", shape.overrides())

        def make_backbone(source: str | None = None, **options: Any) -> Any:
            network: Any = build_backbone(recipe.backbone)
            network.input = network.gives = network.names = None
            return network

        torch.manual_seed(0)
        info = Info(0, 0, 1, None, {"train": StreamInfo(1000, shape.update_images)})
        self.shape, self.method = shape, POA(recipe.method, make_backbone, info).train()
        self.step = Step(TAKEN, 100, 100, 0, 1, 100, 0.0, 0, torch.Generator(), torch.Generator())
        self.grid = self.method.student.backbone.grid
        self.size = self.grid.drawn(info.seed, 0, TAKEN)
        sides = [shape.side, shape.side, *[shape.local] * recipe.method.local_crops]
        self.ready = {f"view{i}": torch.randn(shape.update_images, 3, side, side) for i, side in enumerate(sides)}
        for i in range(2):  # of the first image a third of the patches
            self.ready[f"mask{i}"] = torch.zeros(shape.update_images, self.method.cells**2, dtype=torch.bool)
            self.ready[f"mask{i}"][0, ::3] = True
        (self.views,) = views_of_blocks(self.ready, info.blocks(shape.update_images, 0), self.method.cells)
        with torch.no_grad():
            self.vectors = [self._rows(size) for size in (self.grid.full, self.size)]
            self.logits = [[head(rows) for head in self.method.student.heads] for rows in self.vectors]

    # ---- forward passes

    def forwards(self) -> dict[str, Callable[[], object]]:
        """Return the elastic network, two plain ones with its weights, and its half."""
        from timm.models.vision_transformer import VisionTransformer

        shape, elastic = self.shape, self.method.teacher.backbone
        extracted = elastic.extract(self.grid.full)
        plain = VisionTransformer(img_size=shape.side, patch_size=shape.patch, embed_dim=shape.width, depth=shape.depth,
                                  num_heads=shape.width // shape.head_width, init_values=1.0, num_classes=0).eval()
        plain.load_state_dict(extracted.state_dict())
        half = Size(shape.width // 2, (shape.depth // 2,))
        x = torch.randn(shape.images, 3, shape.side, shape.side)
        calls: dict[str, Callable[[], object]] = {
            "elastic": lambda: elastic(x), "timm": lambda: plain(x), "extracted": lambda: extracted(x),
            "half": lambda: elastic.features(x, half)}
        return {name: torch.inference_mode()(call) for name, call in calls.items()}

    # ---- an update and its parts

    def updates(self) -> dict[str, Callable[[], object]]:
        """Return an update and its parts."""
        return {"update": self.update, "teacher": self.teacher, "intact student": lambda: self.student(self.grid.full),
                "elastic student": lambda: self.student(self.size), "heads": self.heads, "losses": self.losses}

    def update(self) -> None:
        """Compute the loss of ready views and its gradient."""
        torch.stack(list(self.method(self.ready, self.step).terms.values())).sum().backward()
        self.method.zero_grad(set_to_none=True)

    @torch.no_grad()
    def teacher(self) -> None:
        """Let the teacher see the global crops, and its heads those and the hidden patches."""
        features = self.method.teacher.backbone.features(self.views.crops)
        rows = torch.cat([features.vector, hidden_tokens(features.tokens, self.views.hidden)])
        for head in self.method.teacher.heads:
            head(rows)

    def student(self, size: Size) -> None:
        """Take a sub-network's backbone over all crops, forward and backward."""
        rows = self._rows(size)
        rows.backward(torch.ones_like(rows))
        self.method.zero_grad(set_to_none=True)

    def _rows(self, size: Size) -> Tensor:
        """Return what the heads read: class tokens of all crops, and hidden patches."""
        backbone, found = self.method.student.backbone, []
        for crops, mask in ((self.views.crops, self.views.masks), (self.views.local, None)):
            depth = backbone.random_depth(size, len(crops), torch.Generator().manual_seed(0))
            features = backbone.features(crops, size, mask, depth)
            found.append(features.vector)
            if mask is not None:
                found.append(hidden_tokens(features.tokens, self.views.hidden))
        return torch.cat(found)

    def heads(self) -> None:
        """Take both students' rows through all heads, forward and backward."""
        for rows, logits in zip(self.vectors, self.logits, strict=True):
            x = rows.requires_grad_()
            torch.autograd.backward([head(x) for head in self.method.student.heads], logits)
            x.grad = None
        self.method.zero_grad(set_to_none=True)

    def losses(self) -> None:
        """Make targets of logits, and compute all terms with their gradients."""
        counts = [len(self.views.crops), len(self.views.hidden), len(self.views.local)]
        weight, terms = self.views.weights(), []
        leaves = [[x.clone().requires_grad_() for x in logits] for logits in self.logits]
        for intact, elastic in zip(*leaves, strict=True):
            crops, patches, _ = intact.detach().split(counts)
            target = by_sinkhorn(Targets(crops, patches), 0.07)
            said = []
            for crops, patches, local in (intact.split(counts), elastic.split(counts)):
                said.append(Logits(crops, local, patches))
                terms += [cross_view_loss(target.crops, said[-1], 0.1),
                          patch_loss(target.patches, said[-1], weight, 0.1)]
            terms.append(same_view_loss(said[0], said[1], 0.1))
        for rows in self.vectors:
            terms += [koleo(crop) for crop in rows.detach().requires_grad_()[: counts[0]].chunk(2)]
        torch.stack(terms).sum().backward()


if __name__ == "__main__":
    sys.exit(main())
