"""Training curves from metrics.jsonl."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path
from typing import Any

from unlabeled.engine.run.folder import RunFolder
from unlabeled.errors import UserError
from unlabeled.ops.machine.files import write_atomically

_HIDDEN = ("update", "epoch", "images_per_s", "data_wait", "eta", "seconds", "dropped")


def write_curves(run: Path) -> Path:
    """Draw RUN/metrics.jsonl as RUN/curves.png, one panel per group of values.

    Raises UserError if there is no metrics.jsonl or nothing in it.
    """
    panels = group(read_metrics(run / "metrics.jsonl"))
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # 0.5 s that only drawing pays
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    figure = Figure(figsize=(4.2 * columns, 3 * math.ceil(len(panels) / columns)), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (title, curves) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(math.ceil(len(panels) / columns), columns, number)
        for name, (updates, values) in curves.items():
            axes.plot(updates, values, label=name, linewidth=1, marker="o" if len(updates) < 30 else None, markersize=2)
        axes.set(title=title, xlabel="update")
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend(fontsize="small")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    path = run / "curves.png"
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
    return path


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file, without one cut off by a crash. Raises UserError if there are none."""
    lines = RunFolder(path.parent).read_lines(path)
    if not lines:
        raise UserError(f"{path} holds no measurements: has the run made its first updates?")
    return lines


def group(lines: list[dict[str, Any]]) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    """Return panel -> curve -> (updates, values): loss and its terms, all kNN numbers, every other value by itself."""
    panels: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for line in lines:
        for name, value in line.items():
            if name in _HIDDEN or not isinstance(value, int | float) or not math.isfinite(value):
                continue
            updates, values = panels.setdefault(_panel(name), {}).setdefault(name, ([], []))
            updates.append(line["update"])
            values.append(value)
    if len(panels.get("loss", {})) == 2:  # a single term is the loss itself
        panels["loss"] = {"loss": panels["loss"]["loss"]}
    if not panels:
        raise UserError("metrics.jsonl holds no finite value to draw")
    return dict(sorted(panels.items(), key=lambda item: _rank(item[0])))


def _panel(name: str) -> str:
    if name == "loss" or name.startswith("loss/"):
        return "loss"
    last = name.rsplit("/", 1)[-1]
    return "kNN" if last.startswith(("knn", "online_knn")) else last


def _rank(panel: str) -> tuple[int, str]:
    first = ("loss", "kNN", "lr", "effective_rank", "feature_std", "uniformity", "alignment")
    return (first.index(panel) if panel in first else len(first), panel)
