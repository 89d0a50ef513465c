"""The first update of every method on the GPU is that of the CPU.

How far float32, bfloat16 and float16 lie from float64 depends on the method: angles between nearly equal vectors and
pairs of cells beside a threshold magnify rounding. So the CPU's own distance, in the same precision and on the same
views, is the measure, and the GPU, which rounds in other places and sums in another order, may be FACTOR times as far
off. FLOOR is added, since an error may be small by chance: a few roundings of the precision for the loss, which is a
mean over many numbers, and some more for the gradient. TF32, which rounds as coarsely as float16, does not pass as
float32: it lies a thousand times above. Gradients are compared as one vector, by the norm of the difference.
"""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
from tests.gpu.devices import CPU, DEVICE, computing_on, ieee_float32
from tiny import VARIANTS, snapshot, tiny_recipe, tiny_run
from torch import Tensor

from unlabeled.engine.steps import make_step

pytestmark = pytest.mark.gpu
every_variant = pytest.mark.parametrize(("method", "variant"), VARIANTS, ids=["-".join(v) for v in VARIANTS])

FACTOR = 5.0
FLOOR = {torch.float32: (1e-6, 1e-5), torch.bfloat16: (1e-2, 5e-2), torch.float16: (2e-3, 2e-2)}  # loss, gradient
FAR = 0.6  # a gradient off by more than this points elsewhere: then the measure itself is broken
SCALE = {torch.float16: 1024.0}  # of the loss, as the scaler of gradients has it: small ones would vanish
STEEP = 5.0  # normalised views have steps this much larger
LEVEL = 1 / 255  # operations on uint8 round to whole levels, which may fall to either side


@functools.cache
def first_views(method: str, variant: str) -> dict[str, Tensor]:
    """Return the views of the first update, made on the CPU."""
    with computing_on(CPU):
        tiny = tiny_run(tiny_recipe(method, variant))
        return tiny.updater.views(0, 0, tiny.micros(0)[0])


def loss_and_gradient(method: str, variant: str, device: torch.device, dtype: torch.dtype) -> tuple[float, Tensor]:
    """Return the first loss, and the gradient as one vector, float64 on the CPU."""
    views = first_views(method, variant)
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    with computing_on(device), ieee_float32():
        tiny = tiny_run(tiny_recipe(method, variant), weights)
        there = {name: x.to(device, weights if x.is_floating_point() else x.dtype) for name, x in views.items()}
        half = torch.autocast(device.type, dtype) if dtype in (torch.float16, torch.bfloat16) else None
        with half or contextlib.nullcontext():
            losses = tiny.updater.method(there, make_step(tiny.updater.plan, 0, 0, tiny.updater.seed, 0))
        loss = torch.stack(list(losses.terms.values())).sum()
        assert loss.dtype == weights, "losses are computed in at least float32"
        (loss * SCALE.get(dtype, 1.0)).backward()
        grads = [p.grad for p in tiny.updater.method.parameters() if p.grad is not None]
        return float(loss.detach()), torch.cat([g.double().flatten().cpu() for g in grads]) / SCALE.get(dtype, 1.0)


exactly = functools.cache(functools.partial(loss_and_gradient, device=CPU, dtype=torch.float64))


def distance(method: str, variant: str, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Return how far loss and gradient lie from float64, relative to it."""
    loss, gradient = loss_and_gradient(method, variant, device, dtype)
    true_loss, true_gradient = exactly(method, variant)
    return abs(loss - true_loss) / max(1.0, abs(true_loss)), float(
        (gradient - true_gradient).norm() / true_gradient.norm()
    )


@every_variant
@pytest.mark.parametrize("dtype", list(FLOOR), ids=str)
def test_loss_and_gradient_are_as_exact_as_on_the_cpu(method: str, variant: str, dtype: torch.dtype) -> None:
    measure = distance(method, variant, CPU, dtype)
    found = distance(method, variant, DEVICE, dtype)
    assert measure[1] < FAR and found[1] < FAR, f"gradients in {dtype} lie {measure[1]:.2g} and {found[1]:.2g} off"
    for name, own, other, floor in zip(("loss", "gradient"), measure, found, FLOOR[dtype], strict=True):
        assert other <= FACTOR * own + floor, f"{name} {other:.2g} from float64, the CPU {own:.2g}"


@every_variant
def test_views_are_those_of_the_cpu(method: str, variant: str, device: torch.device) -> None:
    """What is drawn is drawn on the CPU, so an image looks the same on any device, but for rounding."""
    expected = first_views(method, variant)
    tiny = tiny_run(tiny_recipe(method, variant))
    views = tiny.updater.views(0, 0, tiny.micros(0)[0])
    assert views.keys() == expected.keys()
    for name, x in expected.items():
        found = views[name]
        assert found.device.type == device.type and found.dtype == x.dtype and found.stride() == x.stride()
        if not x.is_floating_point():
            assert torch.equal(found.cpu(), x), name
            continue
        off = (found.cpu() - x).abs()
        assert float(off.max()) <= 2 * LEVEL * STEEP, name
        assert float((off > 2e-5 * STEEP).double().mean()) < 0.002, f"{name}: more than single pixels differ"


def step_of(method: str, variant: str, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the method's state before and after the first update of the engine, on the CPU, and its values."""
    with computing_on(device), ieee_float32():
        tiny = tiny_run(tiny_recipe(method, variant))
        before = snapshot(tiny)
        outcome = tiny.updater.update(0, tiny.micros(0), [3])
        assert not outcome.dropped and outcome.notes == [3]
        after = {name: x.cpu().double() for name, x in snapshot(tiny).items()}
    return {name: after[name] - x.cpu().double() for name, x in before.items()}, after


@every_variant
def test_the_whole_first_update_is_that_of_the_cpu(method: str, variant: str) -> None:
    """Views, optimizer, banks, running means and moving averages, in float32, each part by what it changed.

    One pixel on the other side of a whole level, or one pair of cells of a threshold, weighs in a batch of 24; a wrong
    rule weighs all.
    """
    (expected, whole), (found, _) = (step_of(method, variant, device) for device in (CPU, DEVICE))
    parts = {name.partition(".")[0] for name in expected}
    for part in parts:
        names = [name for name in expected if name.partition(".")[0] == part and whole[name].numel()]
        a, b = (torch.cat([each[name].flatten() for name in names]) for each in (expected, found))
        assert float((a - b).norm()) <= 0.03 * float(a.norm()) + 1e-6, part
