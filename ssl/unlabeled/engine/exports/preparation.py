"""What is done to an image or video before an exported network sees it, for people who use it without this package."""

from __future__ import annotations

import dataclasses
from typing import Any

from unlabeled.augment.geometry import EvalCrop
from unlabeled.data.clips import Spacing
from unlabeled.methods.base import Input


def preparation(image: Input) -> dict[str, Any]:
    """Return the steps as an export's JSON file keeps them; sizes in pixels."""
    crop, noun = EvalCrop(image.size), "an image" if image.clip is None else "a frame"
    others = ("deeper gray as the data card says; upright, as the file's orientation tag says" if image.clip is None
              else "as ffmpeg converts them; upright, as the file says")
    return {
        "colours": f"RGB of 8 bits, {others}",
        **({} if image.clip is None else {"clip": _clip(image.clip)}),
        "kept_whole": f"{noun} of {image.size} x {image.size} pixels is neither cut nor resized",
        "crop": "the central square; side: round(crop_share * shorter side), left and top: (length - side + 1) // 2",
        "crop_share": _share(image),
        "size": image.size,
        "interpolation": crop.interpolation,
        "antialias": True,
        "rounding": "to 8 bits after resizing, then divided by 255",
        "mean": image.mean,
        "std": image.std,
    }


def _clip(clip: Spacing) -> dict[str, Any]:
    return {
        **dataclasses.asdict(clip),
        "strides": "frames of the video per frame of the clip: stride or, if per_second is given and the video's "
        "frames per second are known, these / per_second",
        "first": "int(max(0, length - frames * strides) / 2) of the video's frames 0 to length - 1",
        "others": "(first + int(i * strides)) % length for i from 0 to frames - 1: behind the last comes the first",
    }


def preparing_lines(image: Input) -> str:
    """Return Python lines that define `prepare`: from a file to what `unlabeled features` makes of it.

    That is [3, size, size] or, of videos, [3, frames, size, size]. They need PIL and torch, whose bicubic filters are
    the same (a = -0.5, antialiased), and of videos PyAV.
    """
    return _image_lines(image) if image.clip is None else _clip_lines(image, image.clip)


def _image_lines(image: Input) -> str:
    values, last = _values(image, 3)
    return (
        "import numpy\nimport torch\nfrom PIL import Image, ImageOps\n\n"
        f"# images: RGB in [0, 1], {values}\n"
        f"def prepare(path):  # {_crop_words(image)}\n"
        "    image = ImageOps.exif_transpose(Image.open(path))\n"
        '    if image.mode[0] in "IF":  # numbers of 16 bits and more, whose black and white the data card states\n'
        '        raise ValueError(f"{path} has more than 8 bits: bring it to 8 as the data card does")\n'
        '    image = image.convert("RGB")\n'
        f"{_crop_lines(image, 1)}"
        "    x = torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 255\n"
        f"{last}\n\n"
        'model.eval()  # features of a file: model(prepare("FILE")[None])'
    )


def _clip_lines(image: Input, clip: Spacing) -> str:
    values, last = _values(image, 4)
    rate = "" if clip.per_second is None else (
        "    times = [frame.pts or 0 for frame in decode(path)]\n"
        "    seconds = (times[-1] - times[0]) * float(next(decode(path)).time_base or 0)\n"
        f"    stride = (length - 1) / seconds / {clip.per_second:g} if seconds else {clip.stride}\n"
    )
    stride = "stride" if rate else str(clip.stride)
    spacing = f"{clip.per_second:g} of them per second" if rate else f"{clip.stride} apart"
    return (
        "from fractions import Fraction\n\nimport av\nimport numpy\nimport torch\nfrom PIL import Image\n\n"
        "def decode(path):  # the frames of a video, in the order in which they are shown\n"
        "    with av.open(path) as file:\n"
        "        yield from file.decode(video=0)\n\n"
        "def picture(frame):  # RGB and upright; PyAV's to_ndarray is off for 10-bit, interlaced and odd frames\n"
        "    graph = av.filter.Graph()\n"
        "    buffer = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format,\n"
        "                              time_base=Fraction(1))\n"
        '    graph.link_nodes(buffer, graph.add("scale", "flags=bicubic"), graph.add("format", "rgb24"),\n'
        '                     graph.add("buffersink"))\n'
        "    graph.configure()\n"
        "    graph.vpush(frame)\n"
        "    return numpy.rot90(graph.vpull().to_ndarray(), round(frame.rotation / 90))\n\n"
        f"# clips: {clip.frames} frames from the middle of a video, {spacing}; RGB in [0, 1], {values}\n"
        f"def prepare(path):  # {_crop_words(image)}\n"
        "    length = sum(1 for _ in decode(path))\n"
        f"{rate}"
        f"    first = int(max(0, length - {clip.frames} * {stride}) / 2)\n"
        f"    places = [(first + int(i * {stride})) % length for i in range({clip.frames})]\n"
        "    pictures = {}\n"
        "    for place, frame in enumerate(decode(path)):\n"
        "        if place in places:\n"
        "            image = Image.fromarray(picture(frame))\n"
        f"{_crop_lines(image, 3)}"
        "            pictures[place] = torch.from_numpy(numpy.array(image))\n"
        "    x = torch.stack([pictures[place] for place in places]).permute(3, 0, 1, 2) / 255\n"
        f"{last}\n\n"
        'model.eval()  # features of a file: model(prepare("FILE")[None])'
    )


def _values(image: Input, dimensions: int) -> tuple[str, str]:
    """Return what is done to values in [0, 1], in words and as the last lines of `prepare`."""
    if image.mean is None or image.std is None:
        return "without mean and deviation", "    return x"
    places = ", ".join([":", ":", *["None"] * (dimensions - 1)])
    return (f"then mean {list(image.mean)} and deviation {list(image.std)}",
            f"    mean, std = torch.tensor([{list(image.mean)}, {list(image.std)}])[{places}]\n"
            "    return (x - mean) / std")


def _crop_words(image: Input) -> str:
    return f"central square of {_share(image):g} of the shorter side, {EvalCrop(image.size).interpolation}"


def _crop_lines(image: Input, indent: int) -> str:
    """Return the lines that cut and resize `image`, of PIL, `indent` times four spaces inside."""
    size, share = image.size, _share(image)
    side = f"max(1, round({share:g} * min(image.size)))" if share != 1 else "min(image.size)"
    lines = (
        f"if image.size != ({size}, {size}):",
        f"    side = {side}",
        "    left, top = ((length - side + 1) // 2 for length in image.size)",
        "    image = image.crop((left, top, left + side, top + side))",
        f"    image = image.resize(({size}, {size}), Image.Resampling.{EvalCrop(size).interpolation.upper()})",
    )
    return "".join(f"{'    ' * indent}{line}\n" for line in lines)


def _share(image: Input) -> float:
    return EvalCrop(image.size).share
