"""Where metrics go: always `metrics.jsonl`, and TensorBoard or Weights & Biases on demand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from unlabeled.engine.run.folder import RunFolder
from unlabeled.engine.run.record import read_record
from unlabeled.errors import UserError


class Metrics:
    """Write one line of numbers per logged update to every sink (rank 0 only)."""

    def __init__(self, folder: RunFolder, sinks: Sequence[str], start: int) -> None:
        self.folder = folder
        lines = folder.read_lines(folder.metrics)
        self.newest = lines[-1]["update"] if lines else None
        self.tensorboard = _tensorboard(folder, start) if "tensorboard" in sinks else None
        self.wandb = _wandb(folder) if "wandb" in sinks else None

    def write(self, update: int, values: dict[str, Any]) -> None:
        """Record `values` of `update`; what comes later of the newest one joins its line."""
        # JSON has no NaN
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        if update == self.newest:
            lines = self.folder.read_lines(self.folder.metrics)
            lines[-1] |= plain
            self.folder.write(self.folder.metrics.name, "".join(json.dumps(line) + "\n" for line in lines))
        else:
            self.folder.append(self.folder.metrics, [{"update": update, **plain}])
        self.newest = update
        if self.tensorboard:
            for name, value in values.items():
                self.tensorboard.add_scalar(name, value, update)
        if self.wandb:
            self.wandb.log(values, step=update)

    def close(self) -> None:
        """Flush the sinks."""
        if self.tensorboard:
            self.tensorboard.close()
        if self.wandb:
            self.wandb.finish()


def _tensorboard(folder: RunFolder, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("train.sinks has tensorboard, which is not installed; pip install tensorboard") from error
    return SummaryWriter(str(folder.path / "tensorboard"), purge_step=start)


def _wandb(folder: RunFolder) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError("train.sinks has wandb, which is not installed; pip install wandb") from error
    # the id is the run's own: another run in a folder of this name is another one there too
    name = read_record(folder.path)["id"]
    return wandb.init(dir=str(folder.path), name=folder.path.name, id=name, resume="allow")
