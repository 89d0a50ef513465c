"""Augmentation beside torchvision's: views/s per core, and whether the views have the same distribution."""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from PIL import Image, ImageFilter
from scipy import stats
from torch import Tensor
from torchvision import transforms

from benchmarks import measure, pictures
from unlabeled.augment import geometry, photometric
from unlabeled.augment.photometric import Drawn, draw_blur, draw_chosen, draw_jitter, render
from unlabeled.config.augment import ResizedCrop
from unlabeled.config.card import Card
from unlabeled.config.files import find
from unlabeled.config.read import read_file
from unlabeled.data.sources.open import open_source
from unlabeled.ops.random import generator, uniforms

QUESTION = "how many SimCLR views does a core make beside torchvision, and are they the same views?"
BARS = {32: 8.0, 224: 1.6}  # views/s over torchvision's on PIL images
SAME = 0.01  # smallest p-value of a two-sample test
STRENGTH = {32: 0.4, 224: 0.8}  # of brightness, contrast and saturation; hue: a quarter
TAPS = {32: 0, 224: 23}  # of the blur; 0: none
STATISTICS = ("mean", "deviation", "chroma", "gradient", "clipped")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main(words: list[str] | None = None) -> int:
    """Measure both at both sizes."""
    given = _arguments(words)
    measure.one_thread()
    report = measure.Report("augment", "Augmentation beside torchvision", QUESTION, ["scipy"])
    if given.compile:
        photometric.compile_operations()
    for size in (32, 224):
        _speed(report, given, size)
    for size in (32, 224):
        _distribution(report, given, size)
    report.finish(given.out)
    return 0


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = measure.arguments("augment", QUESTION, repeats=7)
    parser.add_argument("--views", type=int, default=5000, help="of each side in the two-sample tests (default 5000)")
    parser.add_argument("--compile", action="store_true", help="compile the colour operations")
    given = parser.parse_args(words)
    if given.quick:
        given.views, given.repeats = 100, 1
    return given


# ---- the two sides


class PilBlur:
    """PIL's blur, as most SimCLR codes use it: a sum of box filters in whole grey levels, and fast."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Blur with a deviation from 0.1 to 2."""
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def theirs(size: int, taps: int, pil_blur: bool = False) -> Callable[[Image.Image], Tensor]:
    """Return torchvision's SimCLR transform of PIL images to float [3, size, size], not normalised.

    The blur is torchvision's on tensors, which is exact, or PIL's.
    """
    s = STRENGTH[size]
    steps: list[Callable] = [
        transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(s, s, s, s / 4)], 0.8), transforms.RandomGrayscale(0.2),
    ]
    if taps and pil_blur:
        steps += [transforms.RandomApply([PilBlur()], 0.5), transforms.ToTensor()]
    elif taps:
        blur = transforms.GaussianBlur(taps, (0.1, 2.0))
        steps += [transforms.ToTensor(), transforms.RandomApply([blur], 0.5)]
    else:
        steps.append(transforms.ToTensor())
    return transforms.Compose(steps)


def ours(images: np.ndarray, size: int, taps: int, seed: int, normalise: bool = False) -> Tensor:
    """Return one view of every image, uint8 [n, H, W, 3], as the product makes them: float [n, 3, size, size].

    At 32 pixels all are cut at once, as images in memory are; larger ones singly, as images from files are.
    """
    n, s = len(images), STRENGTH[size]
    crop = geometry.build(ResizedCrop(size=size, interpolation="bilinear"))
    boxes = crop.draw(uniforms(np.arange(n), crop.draws, seed), np.tile(images.shape[1:3], (n, 1)))
    if size == 32:
        crops = crop.apply_batch(torch.from_numpy(images).permute(0, 3, 1, 2), boxes)
    else:
        cut = [crop.apply(image, box) for image, box in zip(images, boxes, strict=True)]
        crops = torch.from_numpy(np.stack(cut))
    draw = generator(seed)
    drawn = Drawn(
        draw_jitter(n, s, s, s, s / 4, 0.8, draw), draw_chosen(n, 0.2, draw),
        draw_blur(n, 0.5, (0.1, 2.0), draw) if taps else None)
    mean, std = (MEAN, STD) if normalise else (None, None)
    return render(crops, drawn, taps=taps or None, mean=mean, std=std)


# ---- speed


def _speed(report: measure.Report, given: argparse.Namespace, size: int) -> None:
    n = 8 if given.quick else {32: 512, 224: 32}[size]
    images = pictures.photographs(n, 32, 32) if size == 32 else pictures.photographs(n, 375, 500)
    pil = [Image.fromarray(image) for image in images]
    transform = transforms.Compose([theirs(size, TAPS[size], pil_blur=True), transforms.Normalize(MEAN, STD)])
    seconds = measure.take_turns({
        "torchvision on PIL images": lambda: torch.stack([transform(image) for image in pil]),
        "unlabeled": lambda: ours(images, size, TAPS[size], seed=0, normalise=True),
    }, given.repeats)
    times = measure.ratio(seconds["torchvision on PIL images"], seconds["unlabeled"])
    blur = " and blur (PIL's on its side)" if TAPS[size] else ""
    report.say(f"**{size} px**: crop, flip, colour jitter, gray{blur}, normalise; images decoded")
    rows = [[name, f"{n / measure.median(taken):.0f} ± {measure.spread(taken):.0%}",
             f"{times:.2f}" if name == "unlabeled" else "1",
             measure.bar(times, at_least=BARS[size]) if name == "unlabeled" else ""] for name, taken in seconds.items()]
    report.table(["", "views/s per core ± quartiles", "times torchvision", "bar"], rows)


# ---- distribution


def p_values(
    first: Iterable[np.ndarray], second: Iterable[np.ndarray], size: int, taps: int, seed: int = 0
) -> dict[str, float]:
    """Return p-values of two-sample Kolmogorov-Smirnov tests: views by torchvision of `first`, by ours of `second`.

    Both: chunks of images uint8 [n, H, W, 3] of one population, one view each. With the same images on both sides the
    samples would not be independent, and differences harder to see. Tested per view: mean, deviation, chroma, gradient,
    share of clipped values.
    """
    torch.manual_seed(seed)
    transform = theirs(size, taps)
    samples = (
        np.concatenate([_statistics(transform(Image.fromarray(image)) for image in images) for images in first]),
        np.concatenate([_statistics(ours(images, size, taps, 1000 + seed + k)) for k, images in enumerate(second)]),
    )
    return {name: float(stats.ks_2samp(*(sample[:, column] for sample in samples)).pvalue)
            for column, name in enumerate(STATISTICS)}


def _statistics(views: Iterable[Tensor]) -> np.ndarray:
    """Return STATISTICS of views [3, S, S], float32 [n, 5]."""
    half = 0.5 / 255  # PIL rounds: what lies within half a level of the end is at the end
    rows = []
    for view in views:  # singly: in the cache
        std, mean = torch.std_mean(view)
        red, green, blue = view
        chroma = torch.maximum(torch.maximum(red, green), blue) - torch.minimum(torch.minimum(red, green), blue)
        gradient = view.diff(dim=1).square_().mean() + view.diff(dim=2).square_().mean()
        clipped = ((view - 0.5).abs_() >= 0.5 - half).float().mean()
        rows.append(torch.stack([mean, std, chroma.mean(), gradient, clipped]))
    return torch.stack(rows).numpy()


def many_photographs(n: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield n photographs a little larger than the views of `size`, in chunks."""
    height, width = size * 8 // 7, size * 10 // 7
    for start in range(0, n, 250):
        yield pictures.photographs(min(250, n - start), height, width, seed=seed + start)


def _distribution(report: measure.Report, given: argparse.Namespace, size: int) -> None:
    about, n = "parts of scikit-learn's sample photographs", given.views
    first: Iterable[np.ndarray] = many_photographs(n, size, seed=0)
    second: Iterable[np.ndarray] = many_photographs(n, size, seed=10**9)
    if size == 32 and "DATA" in os.environ and not given.quick:
        images = open_source(read_file(find("data", "cifar10"), Card), "train").images
        assert images is not None
        about = "CIFAR-10"
        first, second = (np.array_split(images[k * n : (k + 1) * n].copy(), n // 250) for k in (0, 1))
    found = p_values(first, second, size, TAPS[size])
    blur = f"; blur of {TAPS[size]} taps, torchvision's on tensors" if TAPS[size] else ""
    report.say(f"**Same distribution at {size} px?** p-values of two-sample Kolmogorov-Smirnov tests, {n} views "
               f"of each side, every one of another image ({about}){blur}")
    report.table([*found, "smallest"], [[*(f"{p:.2f}" for p in found.values()),
                                        measure.bar(min(found.values()), at_least=SAME)]])


if __name__ == "__main__":
    sys.exit(main())
