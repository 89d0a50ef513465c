"""Batches from which a method cannot learn; what a method needs is said by its own options."""

from __future__ import annotations

from unlabeled.config.recipe import Data, MethodConfig
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
