"""The last feature map of a run's network, for what works on places: segmentation, correspondence, pictures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unlabeled.backbones.maps import maps
from unlabeled.backbones.sizes import refusal, try_image
from unlabeled.engine.exports.networks import refuse_clips
from unlabeled.errors import UserError
from unlabeled.methods.base import Export

_OF_IMAGES = "what works on places of a map is for images"
SMALLEST = 2  # cells along a side; a smaller map tells no places apart


class LastMap(nn.Module):
    """The last map of an exported network: [b, 3, H, W] -> [b, C, h, w]. `network` is the exported one itself.

    Raises UserError for an export that gives no map.
    """

    def __init__(self, name: str, export: Export) -> None:
        super().__init__()
        self.name, self.network = name, export.build()
        self.whole = export.gives == "map"  # the network's own output
        if not self.whole and not (export.gives == "vector" and hasattr(self.network, "forward_features")):
            raise UserError(f"export '{name}' gives {export.gives} and no map; choose one that does, such as "
                            "export=backbone, or an inner block, such as export=backbone.layer3")

    def forward(self, x: Tensor) -> Tensor:
        """Return the map. Raises UserError if the network gives none."""
        out: Tensor = self.network(x) if self.whole else maps(self.network, x)[-1]
        if out.ndim != 4:
            raise UserError(f"export '{self.name}' gives {list(out.shape)} and no map [b, C, h, w]; name another block")
        return out


def last_map(name: str, export: Export, device: torch.device) -> tuple[LastMap, tuple[int, int, int]]:
    """Return the network of an export on the device, in evaluation mode, and its map's (C, h, w) at `export.input`.

    Raises UserError if it gives no map, or one of fewer than 2 x 2 cells, or takes no images of that size, or clips.
    """
    refuse_clips(export, f"export '{name}'", _OF_IMAGES)
    network = LastMap(name, export).to(device).to(memory_format=torch.channels_last).eval()
    size = export.input.size
    output, problem = try_image(network, size)
    if output is None:
        raise UserError(refusal(network, f"export '{name}'", size, problem, "size"))
    _, channels, height, width = output.shape
    if min(height, width) < SMALLEST:
        raise UserError(f"export '{name}' gives a map of {height} x {width} cells for images of {size} x {size}, but "
                        f"{SMALLEST} x {SMALLEST} are the least; take larger images (size={2 * SMALLEST * size}) or an "
                        "inner block (export=backbone.layer3)")
    return network, (channels, height, width)
