"""Files of weights as other libraries write them: timm's smallest networks, with random weights."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import nn

CLASSES = 10


def network(name: str = "test_resnet", classes: int = CLASSES, seed: int = 0, **options: object) -> nn.Module:
    """Return a network whose statistics are not those of a new one either."""
    torch.manual_seed(seed)
    made = timm.create_model(name, num_classes=classes, **options)
    for key, value in made.state_dict().items():
        if key.endswith(("running_mean", "running_var", "bias")):
            value.add_(0.1 * torch.rand_like(value))
    return made.eval()


def write(path: Path, made: nn.Module, prefix: str = "") -> Path:
    """Write a network's weights: safetensors or, with another suffix, what torch.save writes."""
    state = {f"{prefix}{name}": value.clone().contiguous() for name, value in made.state_dict().items()}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path
