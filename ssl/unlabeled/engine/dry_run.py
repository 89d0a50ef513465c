"""A dry run: an estimate of the memory per GPU from a few images, and two updates that leave nothing behind."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unlabeled.config.recipe import Recipe
from unlabeled.data.batch import Batch
from unlabeled.data.streams import OpenStream
from unlabeled.engine import build
from unlabeled.engine.launch import pick_precision
from unlabeled.engine.optim.optimizer import set_learning_rate
from unlabeled.engine.steps import make_step
from unlabeled.engine.updater import Updater
from unlabeled.methods.base import Info
from unlabeled.ops.distributed import counts_per_part, rank, world
from unlabeled.ops.frozen import Frozen
from unlabeled.ops.machine.activations import kept_for_backward
from unlabeled.ops.precision import Resolved, autocast

VIEWS = "views"
_FEW = 2  # images: a BatchNorm behind a pool needs as many


class Fixed(NamedTuple):
    """Bytes that do not depend on the batch.

    frozen_weights: all that the optimizer does not move, such as those of teachers. buckets: in which gradients travel.
    """

    trained_weights: int
    frozen_weights: int
    buffers: int
    gradients: int
    buckets: int
    optimizer: int


def few_images(recipe: Recipe, info: Info, wanted: int = _FEW) -> int:
    """Return the fewest images per process and micro-batch, `wanted` at least, that stand for those of the recipe.

    The other streams keep their proportion, and the blocks are equally large and hold as many as the method needs.
    """
    clock = build.method_class(recipe).clock
    batches = {name: stream.batch for name, stream in recipe.data.streams().items()}
    blocks = len(info.blocks(0, 0))
    unit = math.lcm(blocks, *(batches[clock] // math.gcd(batches[clock], batch) for batch in batches.values()))
    smallest = recipe.method.smallest_batch(clock)
    least = max(_FEW, smallest.images if smallest else 1) * blocks
    return unit * math.ceil(max(wanted, least) / unit)


def rehearse(updater: Updater, opened: dict[str, OpenStream], info: Info, images: int | None) -> None:
    """Print the estimate of the memory per GPU, then do two updates, time the second and print its memory.

    images: per process and micro-batch of these updates, at least, in place of the recipe's.
    """
    lines = estimate(updater, opened, info)
    if rank() == 0:  # before the updates: they may not fit
        print("\n".join(lines), flush=True)
    recipe, share, cuda = updater.recipe, _share(updater), updater.accelerator.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    count = share if images is None else min(share, few_images(recipe, info, images))
    for update, micros in enumerate(_updates(updater, _with_images(recipe, count), opened, 2)):
        begin = time.perf_counter()
        loss = float(updater.update(update, micros, []).values["loss"])
        seconds = time.perf_counter() - begin
    if rank() == 0:
        peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        total = count * world() * recipe.train.grad_accum
        print(
            f"dry run: {f'updates of {total} images, ' * (count < share)}loss {loss:.4f}, "
            f"{total / seconds:.1f} images/s without data loading, "
            f"peak memory per process {peak / 2**30:.2f} GiB ({'GPU' if cuda else 'resident'}); "
            f"{buffer_sizes(updater.method)}; nothing was written"
        )


def estimate(updater: Updater, opened: dict[str, OpenStream], info: Info) -> list[str]:
    """Return in words the memory that a process of the plan needs on a GPU for a micro-batch of the recipe.

    Activations are those of two small numbers of images, from which they go on in a straight line, in the precision
    that the recipe has on a GPU. What is drawn anew in every update is as in the last one.
    """
    recipe, plan, share = updater.recipe, updater.plan, _share(updater)
    few = few_images(recipe, info)
    counts = [few, 2 * few] if 2 * few < share else [share]
    one_micro = recipe.model_copy(update={
        "data": recipe.data.model_copy(update={"workers": 0}),
        "train": recipe.train.model_copy(update={"grad_accum": 1}),
    })  # fmt: skip
    precision, measured = pick_precision(recipe.train.precision, "cuda"), []
    for count in counts:
        [[batch]] = _updates(updater, _with_images(one_micro, count), opened, 1)
        measured.append(activation_sizes(updater, batch, precision))
    activations = extended(counts, measured, share)
    views = activations.pop(VIEWS) * recipe.train.grad_accum
    fixed = fixed_sizes(updater.method, updater.optimizer, plan.batch // plan.batch_per_process)
    together = sum(fixed) + sum(activations.values()) + views
    return [
        f"memory per GPU for {share} images of {plan.batch} in {precision} (estimate, from "
        f"{' and '.join(map(str, counts))} images)",
        f"  {_listed({name.replace('_', ' '): size for name, size in fixed._asdict().items()})}",
        f"  activations {_size(sum(activations.values()))}"
        f"{f': {_listed(activations)}' * (len(activations) > 1)}; views {_size(views)}",
        f"  together {_size(together)}, besides what libraries and the allocator take (1 to 2 GiB)",
    ]


def activation_sizes(updater: Updater, batch: dict[str, Batch], precision: Resolved) -> dict[str, int]:
    """Return the bytes that the forward pass of the last update keeps of a micro-batch, by branch, and its views.

    In the last update all is there that a schedule switches on. Compiled networks are taken as they are without it.
    """
    method, device, update = updater.method, updater.accelerator.device, updater.plan.total - 1
    before = [b.clone() for b in updater.statistics]
    views = updater.views(update, 0, batch)
    counts = counts_per_part([method.counts(views)])
    step = make_step(updater.plan, update, 0, updater.seed, rank(), counts)
    state = [x for network in _networks(method) for x in (*network.parameters(), *network.buffers())]
    with (
        torch.compiler.set_stance("force_eager"),
        autocast(device, precision),
        updater.enough_values(),
        kept_for_backward([*views.values(), *state]) as kept,
    ):
        losses = method(views, step)
        sizes = kept.sizes()
        del losses
    with torch.no_grad():
        for buffer, value in zip(updater.statistics, before, strict=True):
            buffer.copy_(value)
    return {**sizes, VIEWS: _bytes(views.values())}


def extended(counts: list[int], measured: list[dict[str, int]], images: int) -> dict[str, int]:
    """Return the sizes at `images`, by name, on the straight line through those at one or two counts."""
    first, last = measured[0], measured[-1]
    more = (images - counts[0]) / (counts[-1] - counts[0]) if len(counts) > 1 else 0.0
    return {name: max(0, round(first.get(name, 0) + more * (size - first.get(name, 0)))) for name, size in last.items()}


def fixed_sizes(method: nn.Module, optimizer: Optimizer, processes: int) -> Fixed:
    """Return what weights, gradients and optimizer take in each of so many processes, at the widest."""
    networks = _networks(method)
    parameters = [p for network in networks for p in network.parameters()]
    trained = _bytes(p for p in parameters if p.requires_grad)
    return Fixed(
        trained_weights=trained,
        frozen_weights=_bytes(p for p in parameters if not p.requires_grad),
        buffers=_bytes(b for network in networks for b in network.buffers()),
        gradients=trained,
        buckets=trained if processes > 1 else 0,  # DDP's copies of the gradients
        optimizer=_state_size(optimizer),
    )


def buffer_sizes(method: nn.Module, largest: int = 3) -> str:
    """Say how much memory the buffers of `method` take (banks, queues, statistics), and name the largest ones."""
    sizes = {name: buffer.numel() * buffer.element_size() / 2**20 for name, buffer in method.named_buffers()}
    first = sorted(sizes, key=lambda name: -sizes[name])[:largest]
    named = ", ".join(f"{name} {sizes[name]:.2f}" for name in first if sizes[name] >= 0.01)
    return f"buffers {sum(sizes.values()):.2f} MiB" + (f" ({named})" if named else "")


def _updates(
    updater: Updater, recipe: Recipe, opened: dict[str, OpenStream], count: int
) -> Iterator[list[dict[str, Batch]]]:
    pinned = updater.accelerator.device.type == "cuda"
    streams = build.train_streams(recipe, opened, updater.plan, pin_memory=pinned)
    with ExitStack() as at_the_end:
        for stream in streams.values():
            at_the_end.callback(stream.close)
        yield from build.micro_batches(streams, 0, count)


def _share(updater: Updater) -> int:
    """Return the images of the clock stream that a process of the plan has in memory at a time."""
    return updater.plan.batch_per_process // updater.recipe.train.grad_accum


def _with_images(recipe: Recipe, images: int) -> Recipe:
    """Return the recipe with as many images per process and micro-batch, and the other streams in proportion."""
    streams = recipe.data.streams()
    total, batch = images * world() * recipe.train.grad_accum, streams[build.method_class(recipe).clock].batch
    scaled = {name: stream.model_copy(update={"batch": stream.batch * total // batch})
              for name, stream in streams.items()}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=scaled)})


def _networks(method: nn.Module) -> list[nn.Module]:
    return [method, *(module.network for module in method.modules() if isinstance(module, Frozen))]


def _state_size(optimizer: Optimizer) -> int:
    """Return the bytes that an optimizer remembers, after a step at rate 0 on all parameters that is then forgotten.

    The first updates may leave some out: those that are frozen, or all, where the scaler of float16 drops them.
    """
    set_learning_rate(optimizer, 0.0, math.inf)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    size = _bytes(x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor))
    optimizer.state.clear()
    optimizer.zero_grad(set_to_none=True)
    return size


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Return the memory behind tensors; what shares it counts once."""
    storages = [x.untyped_storage() for x in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {_size(size)}" for name, size in sizes.items())


def _size(count: int) -> str:
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.2f} MiB" if count else "0"
