"""`views.png`: the first batch as the network sees it."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

_STRIPS = 4  # clips of each view, all frames of which are shown


def views_png(views: dict[str, Tensor], images: int = 12) -> bytes | None:
    """Return a PNG with one column per image and one row per view; None if no view is an RGB image or clip batch.

    Views [b, 3, S, S] are stretched to their own range, so normalised ones can be seen too. Of clips [b, 3, T, S, S] a
    row is a strip of all frames: those of the first video in all views, then those of the second, and so on.
    """
    clips = [x for x in views.values() if x.ndim == 5 and x.shape[1] == 3]
    if clips:
        strips = {f"video {video}, view {number}": clip[video].transpose(0, 1)
                  for video in range(min(_STRIPS, *map(len, clips))) for number, clip in enumerate(clips)}
        return views_png(strips, max(map(len, strips.values())))
    found = [x for x in views.values() if x.ndim == 4 and x.shape[1] == 3]
    if not found:
        return None
    images = min(images, *map(len, found))  # streams may have batches of different sizes
    rows = [x[:images].float().cpu() for x in found]
    side = max(x.shape[-1] for x in rows)
    scale = max(1, 96 // side)
    tiles = []
    for x in rows:
        low, high = x.amin(), x.amax()
        x = x if low >= 0 and high <= 1 else (x - low) / (high - low).clamp_min(1e-6)
        tiles.append(torch.nn.functional.interpolate(x, size=side * scale, mode="nearest"))
    grid = make_grid(torch.cat(tiles), nrow=len(rows[0]), padding=2, pad_value=1.0)
    pixels = (grid.permute(1, 2, 0) * 255).round().byte().numpy()
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()
