"""Channels last for networks of clips: passes of an update and an evaluation beside those on contiguous tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import torch

from benchmarks import measure
from unlabeled.backbones.build import build_backbone
from unlabeled.config.recipe import Backbone
from unlabeled.ops.machine.layout import channels_last, network_channels_last

QUESTION = "is it faster to lay clips out with their channels innermost (channels_last_3d), as images are?"
NEVER_SLOWER = 1.0  # bar: share of the time with contiguous tensors

# network -> clips, frames, side in pixels; of fewer than 16 clips on one thread torch takes other kernels
SHAPES = {"r3d50": (16, 8, 112), "r3d_tiny": (32, 8, 32)}
QUICK = {"r3d_tiny": (2, 4, 16)}

Passes = Mapping[str, Callable[[], object]]


def main(words: list[str] | None = None) -> int:
    """Time both layouts in turns."""
    given = measure.arguments("video_layout", QUESTION, repeats=5).parse_args(words)
    measure.one_thread()
    report = measure.Report("video_layout", "Layout of clips in memory", QUESTION)
    rows: list[list[str]] = []
    for name, shape in (QUICK if given.quick else SHAPES).items():
        for kind, passes in {"update": _updates(name, shape), "features": _features(name, shape)}.items():
            seconds = measure.take_turns(passes, 1 if given.quick else given.repeats)
            clips, frames, side = shape
            for layout, taken in seconds.items():
                rows.append([f"{name}, {frames} x {side} x {side}, {kind}: {layout}",
                             f"{1e3 * measure.median(taken) / clips:.2f} ± {measure.spread(taken):.0%}", "", ""])
            share = measure.ratio(seconds["channels last"], seconds["contiguous"])
            rows[-1][2:] = [f"{share:.3f}", measure.bar(share, at_most=NEVER_SLOWER)]
    report.say("Update: forward and backward pass in training mode. Features: forward pass in evaluation mode. fp32, "
               "from clips as the data path gives them; laying them out is part of it. Ratio: to contiguous tensors.")
    report.table(["", "CPU ms per clip ± quartiles", "ratio", "bar"], rows)
    report.finish(given.out)
    return 0


def _updates(name: str, shape: tuple[int, int, int]) -> Passes:
    plain, last, x = _made(name, shape)

    def contiguous() -> None:
        plain(x).square().mean().backward()

    def innermost() -> None:
        last(channels_last(x)).square().mean().backward()

    return {"contiguous": contiguous, "channels last": innermost}


def _features(name: str, shape: tuple[int, int, int]) -> Passes:
    plain, last, x = _made(name, shape)
    plain.eval(), last.eval()
    return {"contiguous": torch.no_grad()(lambda: plain(x)),
            "channels last": torch.no_grad()(lambda: last(channels_last(x)))}


def _made(name: str, shape: tuple[int, int, int]) -> tuple[torch.nn.Module, torch.nn.Module, torch.Tensor]:
    """Return a network with contiguous kernels, one with its channels innermost, and clips."""
    torch.manual_seed(0)
    clips, frames, side = shape
    plain, last = (build_backbone(Backbone(name=name)) for _ in range(2))
    return plain, network_channels_last(last), torch.rand(clips, 3, frames, side, side)


if __name__ == "__main__":
    sys.exit(main())
