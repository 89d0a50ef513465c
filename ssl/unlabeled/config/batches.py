"""Batches from which a method cannot learn, and blocks of them; what a method needs is said by its own options."""

from __future__ import annotations

from unlabeled.config.recipe import Data, MethodConfig, Train
from unlabeled.config.yaml.lines import Key


def small_batches(method: MethodConfig, data: Data, processes: int = 1, *, sync_bn: bool = True) -> dict[Key, str]:
    """Return what is wrong, by key, with the batches that are too small for `method` on so many processes."""
    problems: dict[Key, str] = {}
    for name, stream in data.streams().items():
        least = method.smallest_batch(name)
        if least is None:
            continue
        shares = processes if least.alone and not sync_bn else 1
        if stream.batch < least.images * shares:
            share = f", {stream.batch / shares:g} per process," if shares > 1 else ","
            cure = " without train.sync_bn" if shares > 1 else ""
            problems["data", name, "batch"] = (
                f"data.{name}.batch is {stream.batch}{share} but {method.name} learns from {least.images * shares} "
                f"images or more{cure}: {least.why}"
            )
    return problems


def idle_blocks(method: MethodConfig, train: Train) -> dict[Key, str]:
    """Return that `train.blocks` has no effect, by its key, if it is given and the method does not work by blocks."""
    if train.blocks is None or method.works_by_blocks():
        return {}
    return {("train", "blocks"): f"'train.blocks' has no effect with this {method.name}, which does nothing per block; "
                                 "leave it out"}


def block_problem(blocks: int, images: int, processes: int, grad_accum: int) -> str | None:
    """Return why a global batch of `images` cannot be cut into so many blocks, None if it can."""
    parts = processes * grad_accum
    if blocks % parts:
        return (f"{blocks} blocks cannot be shared by {processes} processes x {grad_accum} micro-batches, for a block "
                f"lies in one of them: the number must be a multiple of {parts}")
    if images % blocks:
        return f"{blocks} blocks do not divide {images} images"
    return None
