"""Dense correspondence: does a cell find, by cosine, the cell at the same place in another view of the image?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.augment.geometry import RandomResizedCrop
from unlabeled.augment.photometric import Drawn, Jitter, draw_jitter, render
from unlabeled.config.protocols.dense import Correspondence
from unlabeled.data.evaluation import fixed_crops
from unlabeled.data.sources.open import Source, open_source
from unlabeled.engine.passes.features import gather_names, refuse_corrupt, refuse_nonfinite
from unlabeled.engine.restore import Restored
from unlabeled.engine.run.progress import LongPass
from unlabeled.errors import UserError
from unlabeled.evaluation.dense.networks import Network, dense_report, networks
from unlabeled.evaluation.setup import find_card, scored_split
from unlabeled.evaluation.vectors.scores import Score, plain
from unlabeled.ops.boxes import crop_columns
from unlabeled.ops.distributed import rank, sum_over_ranks, world
from unlabeled.ops.precision import full_precision
from unlabeled.ops.random import generator
from unlabeled.report.report import Report, Split

_PAIRS = 1 << 22  # pairs of cells that are compared at once


@dataclass
class Tally:
    """Sums over query cells, float64: queries, exact and near matches, and what guessing gives of both; and images.

    pairs: images whose views share at least one cell.
    """

    queries: Tensor
    exact: Tensor
    near: Tensor
    exact_chance: Tensor
    near_chance: Tensor
    pairs: Tensor
    images: Tensor

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def run(name: str, cfg: Correspondence, restored: Restored, run: Path, device: torch.device) -> Report | None:
    """Score the run's network, and the untrained one, on the same views; None on other ranks than 0.

    Raises UserError for bad input.
    """
    card, root, own = find_card(cfg.card, cfg.root, restored)
    source = open_source(card, scored_split(cfg.test, card, own or next(iter(card.splits))), root)
    near = f"match@{plain(cfg.near)}"
    scores: dict[str, dict[str, Score]] = {}
    for kind, network in networks(cfg, restored, run, cfg.size, device):
        export = network.export
        sums, corrupt = judge(cfg, network, source, device)
        if int(sums.queries) == 0:
            raise UserError(f"correspondence: no two views of the {int(sums.images)} images of '{card.name}' share a "
                            "place; take larger views, such as area=[0.5,1.0]")
        details = {"queries": int(sums.queries), "overlapping pairs": int(sums.pairs)}
        scores[kind] = {"match": Score(_share(sums.exact, sums), details=details), near: Score(_share(sums.near, sums))}
    if rank() != 0:
        return None
    used = Split(source.split, int(sums.images), 0, len(corrupt), corrupt)
    chance = {"match": _share(sums.exact_chance, sums), near: _share(sums.near_chance, sums)}
    return dense_report(name, cfg, restored, export, card, (used, used), scores, chance, measure="correspondence")


@torch.inference_mode()
def judge(cfg: Correspondence, network: Network, source: Source, device: torch.device) -> tuple[Tally, list[str]]:
    """Return the sums over a split, and the keys of its unreadable images, both of all ranks.

    Every network sees the same views, on any number of processes. Raises UserError if too many images cannot be read,
    and if the network gives NaN or infinity.
    """
    key = (cfg.seed, "correspondence")
    crop = RandomResizedCrop(network.input.size, cfg.area, (3 / 4, 4 / 3), cfg.flip, "bilinear")
    strong, hue = 0.8 * cfg.jitter, 0.2 * cfg.jitter  # SimCLR's jitter, with the torchvision convention
    jitters = [draw_jitter(len(source), strong, strong, strong, hue, 1.0, generator(*key, "jitter", view))
               for view in range(2)]
    total = Tally(*torch.zeros(7, dtype=torch.float64, device=device))
    corrupt: list[str] = []
    means = [torch.empty(0, 2)]
    seen, what = 0, f"correspondence in '{source.split}' of '{source.name}'"
    with full_precision(device), LongPass(what, len(source), rank() == 0) as progress:
        for part in fixed_crops(source, (crop, crop), (*key, "crop"), rank(), world(), cfg.batch, cfg.workers):
            corrupt += part.corrupt
            seen += len(part.index) + len(part.corrupt)
            progress.advance(seen * world())
            if len(part.index) == 0:
                continue
            maps = [network.map(_view(crops.to(device), jitter, part.index, network).contiguous(
                memory_format=torch.channels_last)).float() for crops, jitter in zip(part.crops, jitters, strict=True)]
            means.append(torch.stack([each.mean((1, 2, 3)) for each in maps], 1).cpu())
            boxes = [box.to(device).double() for box in part.boxes if box is not None]
            total += tally(maps[0], maps[1], boxes[0], boxes[1], cfg.near)
    refuse_nonfinite(network.export, torch.cat(means), device)
    names = gather_names(corrupt)
    refuse_corrupt(source, names, cfg.max_corrupt)
    return Tally(*sum_over_ranks(torch.stack(list(vars(total).values()))).cpu()), names


def _view(crops: Tensor, jitter: Jitter, index: Tensor, network: Network) -> Tensor:
    """Return crops, uint8 [b, 3, S, S] of the images at `index`, as the network sees them."""
    drawn = Drawn(jitter=Jitter(*(values[index] for values in jitter)))
    return render(crops, drawn, mean=network.input.mean, std=network.input.std)


def tally(a: Tensor, b: Tensor, box_a: Tensor, box_b: Tensor, near: float) -> Tally:
    """Match maps a, b [n, C, h, w] of two views whose boxes [n, 7] (see `ops.boxes`) are given, float64.

    A query is a cell of `a` whose centre lies inside view b. It is matched to the cell of b with the largest cosine (of
    equal ones, to each in part), which is exact if it contains the query's centre, and near if the centres are less
    than `near` diagonals of the larger cell apart. Places are in pixels of the image.
    """
    n, cells = len(a), a.shape[2] * a.shape[3]
    total = Tally(*torch.zeros(7, dtype=torch.float64, device=a.device))
    for rows in torch.arange(n).split(max(1, _PAIRS // cells**2)):
        total += _tally(a[rows], b[rows], box_a[rows], box_b[rows], near)
    return total


def _tally(a: Tensor, b: Tensor, box_a: Tensor, box_b: Tensor, near: float) -> Tally:
    height, width = a.shape[2:]
    (y, x), (v, u) = (_centres(box, height, width) for box in (box_a, box_b))
    home, inside = _home(y, x, box_b, height, width)
    dy, dx = (y[:, :, None] - v[:, None]) / (2 * height), (x[:, :, None] - u[:, None]) / (2 * width)
    diagonal = torch.maximum(*(torch.hypot(box.height / height, box.width / width)
                               for box in map(crop_columns, (box_a, box_b))))
    close = torch.hypot(dy, dx) < near * diagonal[:, None, None]
    unit_a, unit_b = (F.normalize(each.flatten(2), dim=1) for each in (a, b))
    cosine = unit_a.mT @ unit_b
    best = cosine == cosine.amax(2, keepdim=True)
    exact = F.one_hot(home, height * width).bool()

    def mean(right: Tensor, over: Tensor) -> Tensor:
        share = (right & over).sum(2).double() / over.sum(2)
        return share[inside].sum()

    everywhere = torch.ones_like(best)
    counts = inside.sum(1)
    return Tally(counts.sum().double(), mean(exact, best), mean(close, best), mean(exact, everywhere),
                 mean(close, everywhere), (counts > 0).sum().double(), counts.new_tensor(len(a)).double())


def _centres(box: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return y and x of cells' centres, row by row, [n, h w]: pixels times 2 h and 2 w, which makes them whole."""
    at = crop_columns(box[:, None])
    rows, columns = (torch.arange(1, 2 * count, 2, device=box.device) for count in (height, width))
    across = torch.where(at.flipped > 0.5, columns.flip(0), columns)  # a flipped view runs backwards
    y, x = 2 * height * at.top + at.height * rows, 2 * width * at.left + at.width * across
    shape = (len(box), height, width)
    return y[:, :, None].expand(shape).flatten(1), x[:, None].expand(shape).flatten(1)


def _home(y: Tensor, x: Tensor, box: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the cell of a view that contains each place of `_centres`, int64 [n, P], and whether one does.

    All numbers are whole and the quotients rounded once, so a place on the border of two cells belongs to the lower.
    """
    at = crop_columns(box[:, None])
    row = ((y - 2 * height * at.top) / (2 * at.height)).floor().long()
    column = ((x - 2 * width * at.left) / (2 * at.width)).floor().long()
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    column = torch.where(at.flipped > 0.5, width - 1 - column, column)
    return torch.where(inside, row * width + column, 0), inside


def _share(part: Tensor, sums: Tally) -> float:
    return 100.0 * float(part / sums.queries)
