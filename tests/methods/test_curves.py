"""Where a method takes a number that may be a curve, every update has the curve's value."""

from __future__ import annotations

import pytest
import torch
from tiny import snapshot, tiny_recipe, tiny_run

from unlabeled.config.base.curve import CurveRule
from unlabeled.engine.steps import make_step
from unlabeled.methods.simmatchv2 import teacher_momentum
from unlabeled.ops.curves import value_at

UPDATE = 4  # of 6


def loss_at(method: str, variant: str, *overrides: str) -> float:
    """Return the loss of the first weights at the update."""
    tiny = tiny_run(tiny_recipe(method, variant, overrides))
    tiny.train(0, 1)  # where heads start at zero and banks empty, the temperature would not show
    views = tiny.updater.views(UPDATE, 0, tiny.micros(UPDATE)[0])
    losses = tiny.updater.model(views, make_step(tiny.updater.plan, UPDATE, 0, 0, 0))
    return float(sum(losses.terms.values()).detach())


@pytest.mark.parametrize(("method", "variant", "key"), [
    ("distil", "plain", "method.temperature"),
    ("pixpro", "contrast", "method.pixel.temperature"),
    ("pixpro", "contrast", "method.instance.temperature"),
    ("simclrv2", "plain", "method.temperature"),
    ("simclrv2", "memory", "method.temperature"),
    ("simmatchv2", "plain", "method.temperature"),
    ("poa", "sinkhorn", "method.student_temperature"),
    ("poa", "centering", "method.teacher_temperature"),
])  # fmt: skip
def test_the_temperature_of_the_update(method: str, variant: str, key: str) -> None:
    constant = "optim.lr.base=1e-9"
    curve = loss_at(method, variant, f"{key}={{start: 0.6, end: 0.3, shape: linear}}", constant)
    there, first = (loss_at(method, variant, f"{key}={value}", constant) for value in (0.4, 0.6))
    assert curve == pytest.approx(there, rel=1e-6) and curve != pytest.approx(first, rel=1e-4)


@pytest.mark.parametrize(("method", "variant", "key", "pairs", "moment"), [
    ("simclrv2", "memory", "method.memory.decay", {"momentum_backbone.": "backbone.", "momentum_head.": "head."}, 4),
    ("pixpro", "plain", "method.key_momentum", {"key.": "online."}, 5),  # that of the next update, as published
    ("simmatchv2", "plain", "method.ema.momentum", {"teacher.": "student."}, 5),
    ("poa", "sinkhorn", "method.momentum", {"teacher.": "student."}, 4),
])  # fmt: skip
def test_the_momentum_of_the_update(method: str, variant: str, key: str, pairs: dict[str, str], moment: int) -> None:
    tiny = tiny_run(tiny_recipe(method, variant, [f"{key}={{start: 0.9, end: 0.3, shape: linear}}"]))
    before = snapshot(tiny)
    tiny.train(UPDATE, UPDATE + 1)
    after, momentum = snapshot(tiny), 0.9 - 0.1 * moment
    moved = 0
    trained = {name for name, _ in tiny.updater.method.named_parameters()}
    for teacher, student in pairs.items():
        for name in (n for n in trained if n.startswith(teacher)):
            expected = momentum * before[name] + (1 - momentum) * after[student + name.removeprefix(teacher)]
            torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-7)
            moved += not torch.allclose(after[name], before[name], rtol=1e-4)
    assert moved


def test_simmatchs_momentum_stays_only_above_0_996() -> None:
    own = CurveRule(start=0.9, end=0.3)
    assert (teacher_momentum(0.9961), teacher_momentum(own)) == (0.9961, own)
    rising = [value_at(teacher_momentum(0.996), update, 10, 5) for update in (0, 5, 10, 20)]
    assert rising == pytest.approx([0.996, 0.998, 1.0, 1.0])
