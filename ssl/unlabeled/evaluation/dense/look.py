"""What a network sees in single images: its map in colours and, for PixPro, which cells of two crops are pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.augment.plain_crops import Whole
from unlabeled.config.look import OF_THE_PAIR, LookSettings
from unlabeled.data.batch import Geometry
from unlabeled.data.evaluation import fixed_crops
from unlabeled.data.sources.base import Pixels, with_reason
from unlabeled.data.sources.files.levels import Levels
from unlabeled.data.sources.folder import FolderSource
from unlabeled.data.sources.open import Source, open_source
from unlabeled.data.sources.subset import Part
from unlabeled.engine.launch import pick_device, pick_precision
from unlabeled.engine.maps import last_map
from unlabeled.engine.passes.features import refuse_nonfinite
from unlabeled.engine.restore import Restored, load_run
from unlabeled.engine.run.progress import LongPass
from unlabeled.errors import UserError
from unlabeled.evaluation.dense.networks import Network
from unlabeled.evaluation.setup import find_card, own_levels, pick_export, scored_split
from unlabeled.ops.boxes import CropBox
from unlabeled.ops.cells import centres, coordinates, distances
from unlabeled.ops.machine.files import refuse_unwritable
from unlabeled.ops.measures.health import thin
from unlabeled.ops.precision import full_precision
from unlabeled.report.look import Panel, draw_colours, draw_pairs, write_figure

_BATCH = 16
_TAILS = (0.01, 0.99)  # single cells must not take the colours from all others
_ROUNDING = 1e-5  # of float32 maps, at unit length


@dataclass(frozen=True)
class ImageViews:
    """One image, whole and in views: crops uint8 [3, S, S], boxes [7] (see `ops.boxes`), maps [C, h, w]."""

    index: int
    crops: list[Tensor]
    boxes: list[Tensor]
    maps: list[Tensor]


def look(path: Path, images: Sequence[Path], settings: LookSettings, *, method: str | None = None,
         pca: bool = False) -> list[Path]:
    """Write a picture per image, of `images` or else of a set, and return their paths.

    A PixPro run's show two crops, their pairs and a cell's similarities, unless `pca`; all show the cells in colours.
    Raises UserError for bad input, or if the run's method is not `method`.
    """
    device = pick_device()
    precision = pick_precision(settings.precision, device.type)
    restored = load_run(path, device=device)
    own = restored.recipe.method.name
    if method not in (None, own):
        raise UserError(f"{restored.run} was trained with {own}, not with {method}; leave '{method}' out")
    paired = own == "pixpro" and not pca
    for key in OF_THE_PAIR:
        if not paired and key in settings.model_fields_set:
            raise UserError(f"'{key}' has no effect: {restored.run} was trained with {own}, and crops are PixPro's")
    folder = Path(settings.out) if settings.out else restored.run / "look" / f"update{restored.update:08d}"
    refuse_unwritable(folder / "0.png", "name a folder elsewhere with out=FOLDER")
    name, export = pick_export(restored.method, settings.export, settings.size)
    found, shape = last_map(name, export, device)
    network = Network(name, found, shape, export.input, precision)
    source = _files(images, own_levels(restored)) if images else _some(settings, restored)
    views = _views(restored, export.input.size) if paired else ()
    pictures = see(network, source, views, settings.seed, device)
    colours = Colours(torch.cat([each.flatten(1).T for image in pictures for each in image.maps]))
    files = []
    for image in pictures:
        if paired:
            figure = draw_pairs(*pair_of(image, source, colours, restored.recipe.method.threshold, settings.pixel))
        else:
            figure = draw_colours(Panel("image", source.image(image.index), colours(image.maps[0])))
        kind, stem = "pairs" if paired else "pca", Path(source.key(image.index)).stem
        files.append(write_figure(figure, folder / f"{image.index + 1}-{stem}-{kind}.png"))
    cells = f"{shape[1]} x {shape[2]} cells of {shape[0]} numbers, computed in {precision}"
    print(*files, f"export {name}{restored.moment}, {cells}", sep="\n")
    return files


def _files(images: Sequence[Path], levels: Levels | None) -> Source:
    """Return files as a set; their names are as they were given."""
    source = FolderSource("images", "given", Path(), [str(path) for path in images])
    source.pixels = Pixels(levels)
    return source


def _some(settings: LookSettings, restored: Restored) -> Source:
    """Return images spread over a split of a card, the settings' or the run's own."""
    card, root, own = find_card(settings.card, settings.root, restored)
    source = open_source(card, scored_split(settings.split, card, own or next(iter(card.splits))), root)
    return Part(source, thin(torch.arange(len(source)), settings.count).numpy())


def _views(restored: Restored, size: int) -> Sequence[Geometry]:
    """Return the crops that PixPro is trained on, of `size`."""
    method = restored.recipe.method
    cfg = method.model_copy(update={"crop": method.crop.model_copy(update={"size": size})})
    return type(restored.method).streams(cfg)["train"].crops


@torch.inference_mode()
def see(network: Network, source: Source, views: Sequence[Geometry], seed: int, device: torch.device,
        ) -> list[ImageViews]:
    """Return what the network makes of every image of a set: the whole first, then the views drawn by `seed`.

    Names images that cannot be read. Raises UserError if none can, and if the network gives NaN or infinity.
    """
    images: list[ImageViews] = []
    with full_precision(device), LongPass("look", len(source), shown=True) as progress:
        for part in fixed_crops(source, [Whole(network.input.size), *views], (seed, "look"), 0, 1, _BATCH):
            progress.advance(len(images))
            for key in part.corrupt:
                print(f"left out, cannot be read: {with_reason(key)}")
            maps = [network(crops.to(device)).cpu() for crops in part.crops if len(crops)]
            boxes = [box for box in part.boxes if box is not None]
            images += [ImageViews(int(part.index[i]), [crops[i] for crops in part.crops], [box[i] for box in boxes],
                          [each[i] for each in maps]) for i in range(len(part.index))]
    if not images:
        raise UserError(f"none of the {len(source)} images can be read")
    refuse_nonfinite(network.export, torch.stack([image.maps[0].mean((1, 2)) for image in images]), torch.device("cpu"),
                     network.precision)
    return images


class Colours:
    """The first three principal components of cells [n, C], taken at unit length, as red, green and blue.

    The largest number of every component is positive. 0 and 1 are the 1st and the 99th percentile of the cells; a
    component along which they do not differ is 0.5.
    """

    def __init__(self, cells: Tensor) -> None:
        x = _unit(cells)
        self.mean = x.mean(0)
        centred = x - self.mean
        axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -3:].flip(1)
        self.axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
        self.low, self.high = np.quantile((centred @ self.axes).numpy(), _TAILS, axis=0)
        self.flat = self.high - self.low < _ROUNDING

    def __call__(self, cells: Tensor) -> np.ndarray:
        """Return the colours of a map [C, h, w], float64 [h, w, 3] in [0, 1]."""
        parts = ((_unit(cells.permute(1, 2, 0)) - self.mean) @ self.axes).numpy()
        shares = (parts - self.low) / np.where(self.flat, 1, self.high - self.low)
        return np.where(self.flat, 0.5, shares.clip(0, 1))


def _unit(cells: Tensor) -> Tensor:
    """Return cells [..., C] at unit length in float64, with zeros for what is missing to three numbers."""
    return F.pad(F.normalize(cells.double(), dim=-1), (0, max(0, 3 - cells.shape[-1])))


def pair_of(image: ImageViews, source: Source, colours: Colours, threshold: float, pixel: tuple[int, int] | None,
            ) -> tuple[list[Panel], list[tuple[float, float, float, float]], np.ndarray]:
    """Return what `draw_pairs` draws: panels of the image and its two views, the views' boxes, and the pairs' mask.

    pixel: row and column of a cell of view 1; None: the central one. Raises UserError if there is no such cell.
    """
    high, wide = image.maps[1].shape[1:]
    row, column = pixel or (high // 2, wide // 2)
    if row >= high or column >= wide:
        raise UserError(f"pixel={row},{column} lies outside the map of {high} x {wide} cells, which count from 0")
    places = coordinates(torch.stack(image.boxes))
    positive = distances(places[1:2], places[2:3], (high, wide))[0] < threshold
    spot = centres(places[1:2], (high, wide))[0, row * wide + column]
    _, *views = (CropBox(*box.tolist()) for box in image.boxes)
    titles = ["image", *(f"view {number}{', flipped' if box.flipped else ''}" for number, box in enumerate(views, 1))]
    shown = [source.image(image.index), *(crop.permute(1, 2, 0).numpy() for crop in image.crops[1:])]
    panels = [Panel(title, pixels, colours(each), similarity(image.maps[1][:, row, column], each), _inside(spot, place))
              for title, pixels, each, place in zip(titles, shown, image.maps, places, strict=True)]
    boxes = [(box.left / box.image_width, box.top / box.image_height, box.width / box.image_width,
              box.height / box.image_height) for box in views]
    return panels, boxes, positive.numpy()


def similarity(cell: Tensor, cells: Tensor) -> np.ndarray:
    """Return the cosines of a cell [C] and the cells of a map [C, h, w]: float [h, w]."""
    return F.cosine_similarity(cell[:, None, None], cells, dim=0).numpy()


def _inside(spot: Tensor, place: Tensor) -> tuple[float, float] | None:
    """Return a place (x, y) of the image as shares of a view with coordinates [4]; None if it lies outside."""
    start, end = place.chunk(2)
    x, y = ((spot - start) / (end - start)).tolist()
    return (x, y) if 0 <= x <= 1 and 0 <= y <= 1 else None
