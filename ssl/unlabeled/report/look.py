"""Pictures of feature maps: cells in colours, the pairs of two crops, and what is similar to one cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unlabeled.ops.machine.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDE, _BESIDE, _DPI = 2.2, 0.8, 100  # inches of a panel and of labels and scale beside them, dots per inch
_LINES = 400  # drawn at most: more hide the views, and 10,000 take minutes
_WHERE = ("tab:orange", "tab:blue")  # the two crops


@dataclass(frozen=True)
class Panel:
    """An image, uint8 [H, W, 3], with the colours of its cells [h, w, 3] in [0, 1].

    similarity: float [h, w], of the cells with the marked one. spot: (x, y) of the marked one as shares of width and
    height; None if it lies outside.
    """

    title: str
    image: np.ndarray
    colours: np.ndarray
    similarity: np.ndarray | None = None
    spot: tuple[float, float] | None = None


def draw_colours(panel: Panel) -> Figure:
    """Draw an image beside its cells in colours."""
    figure, axes = _grid(1, 2, _tall(panel))
    _show(axes[0][0], panel, panel.image, title=panel.title)
    _show(axes[0][1], panel, panel.colours, title="principal components")
    return figure


def draw_pairs(panels: Sequence[Panel], boxes: Sequence[tuple[float, float, float, float]],
               positive: np.ndarray) -> Figure:
    """Draw an image with its two views: crops and pairs, similarities, colours of the cells.

    panels: the image, view 1, view 2, with similarities. boxes: of the views, (x, y, width, height) as shares of the
    image. positive: bool [h w, h w], the pairs of cells of view 1 and view 2, each drawn as one line; of more than 400
    those that are drawn are spread evenly, and the picture says so.
    """
    figure, axes = _grid(3, 3, 1.0)
    low = min(float(each.similarity.min()) for each in panels if each.similarity is not None)
    for panel, (top, middle, bottom) in zip(panels, zip(*axes, strict=True), strict=True):
        _show(top, panel, panel.image, title=panel.title)
        heat = _show(middle, panel, panel.similarity, vmin=low, vmax=1.0, cmap="viridis")
        _show(bottom, panel, panel.colours)
        if panel.spot is not None:
            middle.plot(*panel.spot, marker="+", color="red", markersize=12, markeredgewidth=2)
    pairs = lines(positive, panels[1].colours.shape[:2])
    sample = pairs[np.arange(_LINES) * len(pairs) // _LINES] if len(pairs) > _LINES else pairs
    said = f"{len(sample)} of " if len(sample) < len(pairs) else ""
    labels = (f"{said}{len(pairs)} positive pairs", "cosine with the cell +", "principal components")
    for row, label in zip(axes, labels, strict=True):
        row[0].set_ylabel(label)
    figure.colorbar(heat, ax=axes[1], fraction=0.05, pad=0.01)
    _boxes(axes[0], boxes)
    _lines(figure, axes[0][1], axes[0][2], sample)
    return figure


def lines(positive: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the pairs' places as shares (x, y in view 1, x, y in view 2), in the order of their cells: [pairs, 4]."""
    first, second = np.nonzero(positive)
    places = [(cell[:, None] // divide[None] % modulus[None] + 0.5) / modulus[None] for cell, divide, modulus in
              ((cell, np.array([1, shape[1]]), np.array([shape[1], shape[0]])) for cell in (first, second))]
    return np.concatenate(places, 1)


def write_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
    return path


def _grid(rows: int, columns: int, tall: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure  # 0.5 s that only drawing pays

    size = _SIDE * columns + (_BESIDE if rows > 1 else 0), _SIDE * tall * rows + 0.3
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _tall(panel: Panel) -> float:
    return panel.image.shape[0] / panel.image.shape[1]


def _show(axes: Any, panel: Panel, values: Any, title: str = "", **look: Any) -> Any:
    """Show an array over the unit square, so that cells and pixels share their coordinates, at the image's shape."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize="medium")
    return axes.imshow(values, extent=(0, 1, 1, 0), aspect=_tall(panel), interpolation="nearest", **look)


def _boxes(axes: Sequence[Any], boxes: Sequence[tuple[float, float, float, float]]) -> None:
    from matplotlib.patches import Rectangle

    for (x, y, width, height), colour, view in zip(boxes, _WHERE, axes[1:], strict=True):
        axes[0].add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=2.5, clip_on=False))
        view.spines[:].set(color=colour, linewidth=2.5)


def _lines(figure: Figure, first: Any, second: Any, places: np.ndarray) -> None:
    """Draw the pairs between two axes, in colours that change from left to right and from top to bottom of view 1."""
    from matplotlib.patches import ConnectionPatch

    colours = np.stack([places[:, 0], 1 - places[:, 1], 1 - places[:, 0] * places[:, 1]], 1)
    for (x1, y1, x2, y2), colour in zip(places, colours, strict=True):
        line = ConnectionPatch((x1, y1), (x2, y2), "data", "data", axesA=first, axesB=second, color=colour,
                               linewidth=0.7, alpha=0.4)
        line.set_in_layout(False)
        figure.add_artist(line)
    for axes, ends in ((first, places[:, :2]), (second, places[:, 2:])):
        axes.scatter(*ends.T, c=colours, s=20, edgecolors="black", linewidths=0.4)
