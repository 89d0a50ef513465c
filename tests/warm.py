"""What the server of child processes imports before it forks any; no operation of torch, which would start threads."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]

# a server gets no search path from the process that starts it (Python 3.11); children get their own afterwards
sys.path[:0] = [str(_ROOT / folder) for folder in ("ssl", ".", "tests", "tests/golden")]

for _name in (
    "pytest", "torch", "torch.testing", "torchvision", "timm", "accelerate", "sklearn.datasets", "numpy.testing",
    "unlabeled.engine.train", "unlabeled.evaluation.evaluate", "unlabeled.config.protocols.all", "processes", "tiny",
):  # fmt: skip
    import_module(_name)
