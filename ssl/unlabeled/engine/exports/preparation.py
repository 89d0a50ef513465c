"""What is done to an image before an exported network sees it, for people who use the network without this package."""

from __future__ import annotations

from typing import Any

from unlabeled.augment.geometry import EvalCrop
from unlabeled.methods.base import Input


def preparation(image: Input) -> dict[str, Any]:
    """Return the steps as an export's JSON file keeps them; sizes in pixels."""
    crop = EvalCrop(image.size)
    return {
        "colours": "RGB of 8 bits, deeper gray as the data card says; upright, as the file's orientation tag says",
        "kept_whole": f"an image of {image.size} x {image.size} pixels is neither cut nor resized",
        "crop": "the central square; side: round(crop_share * shorter side), left and top: (length - side + 1) // 2",
        "crop_share": _share(image),
        "size": image.size,
        "interpolation": crop.interpolation,
        "antialias": True,
        "rounding": "to 8 bits after resizing, then divided by 255",
        "mean": image.mean,
        "std": image.std,
    }


def preparing_lines(image: Input) -> str:
    """Return Python lines that define `prepare`: from a file to [3, size, size], as `unlabeled features` does it.

    They need PIL and torch, whose bicubic filters are the same (a = -0.5, antialiased).
    """
    size, share = image.size, _share(image)
    side = f"max(1, round({share:g} * min(image.size)))" if share != 1 else "min(image.size)"
    if image.mean is None or image.std is None:
        values, last = "without mean and deviation", "    return x"
    else:
        values = f"then mean {list(image.mean)} and deviation {list(image.std)}"
        last = (f"    mean, std = torch.tensor([{list(image.mean)}, {list(image.std)}])[:, :, None, None]\n"
                "    return (x - mean) / std")
    return (
        "import numpy\nimport torch\nfrom PIL import Image, ImageOps\n\n"
        f"# images: RGB in [0, 1], {values}\n"
        f"def prepare(path):  # central square of {share:g} of the shorter side, {EvalCrop(size).interpolation}\n"
        "    image = ImageOps.exif_transpose(Image.open(path))\n"
        '    if image.mode[0] in "IF":  # numbers of 16 bits and more, whose black and white the data card states\n'
        '        raise ValueError(f"{path} has more than 8 bits: bring it to 8 as the data card does")\n'
        '    image = image.convert("RGB")\n'
        f"    if image.size != ({size}, {size}):\n"
        f"        side = {side}\n"
        "        left, top = ((length - side + 1) // 2 for length in image.size)\n"
        "        image = image.crop((left, top, left + side, top + side))\n"
        f"        image = image.resize(({size}, {size}), Image.Resampling.{EvalCrop(size).interpolation.upper()})\n"
        "    x = torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 255\n"
        f"{last}\n\n"
        'model.eval()  # features of a file: model(prepare("FILE")[None])'
    )


def _share(image: Input) -> float:
    return EvalCrop(image.size).share
