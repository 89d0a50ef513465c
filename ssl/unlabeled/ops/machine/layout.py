"""Channels last: how images and clips lie in memory where convolutions are fastest."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(x: Tensor) -> Tensor:
    """Return images [n, C, H, W] or clips [n, C, T, H, W] with their channels innermost, any other tensor as it is."""
    return x.contiguous(memory_format=_FORMATS[x.ndim]) if x.ndim in _FORMATS else x


def network_channels_last(network: Network) -> Network:
    """Lay the kernels of a network out in the same way and return it; torch's own call refuses 2D beside 3D ones."""
    for value in (*network.parameters(), *network.buffers()):
        if value.ndim in _FORMATS:
            value.data = value.data.to(memory_format=_FORMATS[value.ndim])
    return network
