"""SimCLRv2's closed forms and switches (the arrays of the published code are tested in tests/golden)."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import tiny_recipe, tiny_run

from unlabeled.engine.steps import make_step
from unlabeled.errors import UserError
from unlabeled.methods.simclrv2 import (
    KeyQueue,
    ProjectionHead,
    contrast_metrics,
    memory_contrast,
    normalize,
    nt_xent,
)
from unlabeled.methods.simclrv2_config import Head


def units(n: int, d: int = 128) -> torch.Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(n), dtype=torch.float64))


def test_closed_forms() -> None:
    n, t = 8, 0.1
    same = units(1).expand(n, -1)
    assert float(nt_xent(same, same, t).loss) == pytest.approx(2 * math.log(2 * n - 1))
    eye = torch.eye(n, dtype=torch.float64)
    aligned = 2 * (math.log(math.exp(1 / t) + 2 * n - 2) - 1 / t)
    assert float(nt_xent(eye, eye, t).loss) == pytest.approx(aligned)
    assert float(nt_xent(units(1), units(1), t).loss) == 0
    a, b = units(512), units(513)[:512]
    assert float(nt_xent(a, b, t).loss) == pytest.approx(2 * (math.log(1022) + 1 / (2 * 128 * t * t)), rel=0.02)


def test_swapping_views_permuting_images_and_scaling_leave_the_loss() -> None:
    a, b = units(6), units(7)[:6]
    loss = float(nt_xent(a, b, 0.5).loss)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert float(nt_xent(b, a, 0.5).loss) == pytest.approx(loss, abs=1e-12)
    assert float(nt_xent(a[order], b[order], 0.5).loss) == pytest.approx(loss, abs=1e-12)
    assert float(nt_xent(normalize(7 * a), normalize(0.1 * b), 0.5).loss) == pytest.approx(loss, abs=1e-12)


def test_loss_is_float32_under_autocast() -> None:
    a, b = units(16).bfloat16(), units(17)[:16].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        low = nt_xent(a, b, 0.05)
    assert low.loss.dtype == torch.float32
    exact = nt_xent(a.double(), b.double(), 0.05)
    assert float(low.loss) == pytest.approx(float(exact.loss), rel=1e-5)


def test_head_has_the_published_size_and_taps() -> None:
    head = ProjectionHead(2048, Head())
    assert sum(p.numel() for p in head.parameters()) == 8_659_072
    x = torch.randn(4, 2048)
    assert head(x, 0) is x
    assert head(x, 1).min() >= 0 and head(x, 2).min() >= 0 and head(x, 2).shape == (4, 2048)
    assert torch.equal(head.eval()(x), head(x, 3)) and head(x).shape == (4, 128)
    assert sum(p.numel() for p in ProjectionHead(512, Head()).parameters()) == 592_000


def test_queue_ignores_slots_never_written_and_wraps() -> None:
    queue = KeyQueue(6, 4).double()
    keys = [units(2 * i + 2, 4)[:2] for i in range(4)]
    empty = memory_contrast(keys[0], keys[1], keys[0], keys[1], queue, 0.5).loss
    bare = KeyQueue(1, 4).double()
    assert float(empty) == pytest.approx(float(memory_contrast(keys[0], keys[1], keys[0], keys[1], bare, 0.5).loss))
    for k in keys:
        queue.push(k)
    assert torch.equal(queue.keys, torch.cat([keys[3], keys[1], keys[2]]))
    assert int(queue.pointer) == 2 and int(queue.written) == 6


def test_memory_gets_no_gradient_and_follows_the_network() -> None:
    tiny = tiny_run(tiny_recipe("simclrv2", "memory"))
    method = tiny.updater.method
    pairs = ((method.momentum_backbone, method.backbone), (method.momentum_head, method.head))
    before = [[p.clone() for p in teacher.parameters()] for teacher, _ in pairs]
    tiny.train(0, 2)
    for (teacher, network), then in zip(pairs, before, strict=True):
        assert all(not p.requires_grad for p in teacher.parameters())
        now, student = list(teacher.parameters()), list(network.parameters())
        moved = [(b, m, s) for b, m, s in zip(then, now, student, strict=True) if not torch.equal(b, s)]
        assert moved and all((m - s).norm() < (b - s).norm() for b, m, s in moved)
    for m, s in zip(method.momentum_backbone.buffers(), method.backbone.buffers(), strict=True):
        assert torch.equal(m, s)
    assert int(method.queue.written) == 96
    torch.testing.assert_close(method.queue.keys.norm(dim=1), torch.ones(len(method.queue.keys)))


def test_the_probe_leaves_the_backbone_alone() -> None:
    with_probe, without = (
        tiny_run(tiny_recipe("simclrv2", "plain", [f"method.online_probe={flag}"])) for flag in ("true", "false")
    )
    # same initial weights: the probe is drawn last
    gradients = [t.first_gradients()[2] for t in (with_probe, without)]
    assert all(torch.equal(gradients[0][name], g) for name, g in gradients[1].items())


def test_strength_zero_switches_jitter_and_gray_off() -> None:
    recipe = tiny_recipe("simclrv2", "colour", ["method.augment.jitter=0", "method.augment.blur_p=0"])
    tiny = tiny_run(recipe)
    batch = tiny.micros(0)[0]
    views = tiny.updater.views(0, 0, batch)
    for i, crop in enumerate(batch["train"].crops, 1):
        assert torch.equal(views[f"view{i}"], crop / 255)


def test_normalize_uses_the_cards_statistics_and_tells_the_export() -> None:
    plain = tiny_run(tiny_recipe("simclrv2", "colour"))
    normal = tiny_run(tiny_recipe("simclrv2", "colour", ["method.augment.normalize=true"]))
    image = normal.updater.method.exports()["backbone"].input
    assert plain.updater.method.exports()["backbone"].input.mean is None
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (image.mean, image.std))
    raw, made = (t.updater.views(0, 0, t.micros(0)[0])["view1"] for t in (plain, normal))
    torch.testing.assert_close(made, (raw - mean) / std)


def test_a_memory_smaller_than_one_update_is_refused() -> None:
    with pytest.raises(UserError, match=r"method.memory.size 40 is less than the 48 keys of one update"):
        tiny_run(tiny_recipe("simclrv2", "plain", ["method.memory={size: 40}"]))


def test_the_probe_of_a_flat_classifier_has_the_loss_of_guessing() -> None:
    """The mean over both views of the images with a label, whatever share of the batch that is."""
    tiny = tiny_run(tiny_recipe("simclrv2", "plain", ["method.online_probe=true"]))
    views = tiny.updater.views(0, 0, tiny.micros(0)[0])
    views["label"] = views["label"].where(torch.arange(len(views["label"])) % 3 == 0, -1)
    method = tiny.updater.method
    torch.nn.init.zeros_(method.probe.weight)
    torch.nn.init.zeros_(method.probe.bias)
    losses = method(views, make_step(tiny.updater.plan, 0, 0, 0, 0))
    assert float(losses.terms["probe"]) == pytest.approx(math.log(10), rel=1e-5)
    assert 0 <= float(losses.metrics["probe_accuracy"]) <= 1


def test_accuracy_and_entropy_of_the_contrast() -> None:
    told = contrast_metrics(torch.zeros(4, 4).fill_diagonal_(1e-3).double())
    assert float(told["contrast_accuracy"]) == 1 and float(told["contrast_entropy"]) == pytest.approx(math.log(4))
    sure = contrast_metrics(torch.eye(4).roll(1, 1).double() * 100)
    assert float(sure["contrast_accuracy"]) == 0 and float(sure["contrast_entropy"]) == pytest.approx(0, abs=1e-9)


def test_the_second_export_ends_after_the_heads_first_layer() -> None:
    method = tiny_run(tiny_recipe("simclrv2", "plain")).updater.method
    exports = method.exports()
    x = torch.rand(3, 3, exports["backbone"].input.size, exports["backbone"].input.size)
    backbone, tapped = (exports[name].build() for name in ("backbone", "backbone+head1"))
    with torch.no_grad():
        expected = method.head.layers[0].eval()(backbone(x))
        assert torch.equal(tapped(x), expected)
        assert not torch.allclose(method.head.layers[1].eval()(expected), expected)


def test_both_views_of_an_image_have_its_label() -> None:
    tiny = tiny_run(tiny_recipe("simclrv2", "memory"))
    method, seen = tiny.updater.method, list[torch.Tensor]()
    method.probe.register_forward_hook(lambda _, given, logits: seen.append(logits))
    views = tiny.updater.views(0, 0, tiny.micros(0)[0])
    found = method(views, make_step(tiny.updater.plan, 0, 0, 0, 0)).terms["probe"]
    expected = torch.nn.functional.cross_entropy(seen[0], torch.cat([views["label"], views["label"]]))
    torch.testing.assert_close(found.float(), expected)
