"""Random depth and dropout are drawn for the global batch: processes, micro-batches and resumes draw the same masks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from processes import run_processes
from tiny import differing, snapshot, tiny_recipe, tiny_run

LAYOUT = "train.channels_last=false"
VIT = (
    "backbone={name: vit_tiny_patch16_224, options: {img_size: 8, patch_size: 4, depth: 2, embed_dim: 8, num_heads: 1, "
    "global_pool: avg, class_token: false, drop_path_rate: 0.5, proj_drop_rate: 0.3, pos_drop_rate: 0.2}}"
)
RESNET = "backbone={name: resnet18, stem: cifar, options: {drop_path_rate: 0.5, drop_rate: 0.3}}"
SWIN = (  # four windows of an image, one behind another, are rows of the attention's dropout
    "backbone={name: swin_tiny_patch4_window7_224, options: {img_size: 16, patch_size: 2, window_size: 4, "
    "embed_dim: 8, depths: [2], num_heads: [1], proj_drop_rate: 0.3, drop_path_rate: 0.5}}"
)
CASES = {  # a view of four rows per image, two sizes of view together, two views, windows
    "rotations-vit": ("rotnet", "all", [VIT, "method.block=null"]),
    "labels-vit": ("finetune", "plain", [VIT]),
    "two-streams-vit": ("simmatchv2", "randaugment", [VIT]),
    "two-views-resnet": ("simclrv2", "plain", [RESNET, "backbone.width=0.125"]),
    "two-views-swin": ("simclrv2", "plain", [SWIN, "method.crop={kind: affine, size: 16}"]),
}


def recipe(case: str, *more: str):
    method, variant, overrides = CASES[case]
    return tiny_recipe(method, variant, [LAYOUT, *overrides, *more])


def gradients(case: str) -> dict[str, Any]:
    _, loss, grads = tiny_run(recipe(case), torch.float64).first_gradients()
    return {"loss": float(loss), **{name: x.numpy() for name, x in grads.items()}}


def on_rank(number: int) -> dict[str, dict[str, Any]]:
    return {case: gradients(case) for case in CASES}


@pytest.fixture(scope="module")
def two() -> list[dict[str, dict[str, Any]]]:
    """Loss and gradients of every case on two processes, which start once for all."""
    return run_processes(2, on_rank)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case: str, two: list[dict[str, dict[str, Any]]]) -> None:
    parts = [part[case] for part in two]
    _, loss, grads = tiny_run(recipe(case), torch.float64).first_gradients()
    assert sum(part["loss"] for part in parts) / 2 == pytest.approx(float(loss), rel=1e-10)
    largest = max(float(g.norm()) for g in grads.values())
    for name, whole in grads.items():
        error = float((torch.as_tensor(parts[0][name]) - whole).norm())
        assert error <= 1e-9 * max(float(whole.norm()), 1e-4 * largest), name


@pytest.mark.parametrize("case", ["rotations-vit", "two-views-resnet"])
def test_three_and_three_updates_are_six_bit_for_bit(case: str) -> None:
    whole = tiny_run(recipe(case))
    whole.train(0, 3)
    state = copy.deepcopy((whole.updater.method.state_dict(), whole.updater.optimizer.state_dict()))
    whole.train(3, 6)
    resumed = tiny_run(recipe(case))
    resumed.updater.method.load_state_dict(state[0])
    resumed.updater.optimizer.load_state_dict(state[1])
    resumed.train(3, 6)
    assert not differing(snapshot(whole), snapshot(resumed))


def test_micro_batches_are_the_whole_batch() -> None:
    whole, parts = (tiny_run(recipe("labels-vit", f"train.grad_accum={n}"), torch.float64) for n in (1, 2))
    batch = whole.micros(0)
    views = whole.updater.views(0, 0, batch[0])
    cut = {name: x.double().chunk(2) if x.is_floating_point() else x.chunk(2) for name, x in views.items()}
    states = []
    for tiny, given in ((whole, [{n: torch.cat(x) for n, x in cut.items()}]),
                        (parts, [{n: x[i] for n, x in cut.items()} for i in range(2)])):
        tiny.updater.views = lambda update, micro, views: views  # type: ignore[method-assign,assignment]
        tiny.updater.update(0, given, [0])  # type: ignore[arg-type]
        states.append(snapshot(tiny))
    for name, x in states[0].items():
        torch.testing.assert_close(states[1][name], x, rtol=1e-9, atol=1e-12, msg=name)


def test_masks_differ_between_updates_views_and_layers() -> None:
    tiny = tiny_run(recipe("labels-vit"))
    masks = []
    for layer in (m for m in tiny.updater.method.modules() if type(m).__name__ == "DropPath"):
        layer.register_forward_hook(lambda module, inputs, out: masks.append(out.flatten(1).any(1)))
    tiny.train(0, 2)
    assert len({tuple(mask.tolist()) for mask in masks}) == len(masks) == 4
    assert all(0 < int(mask.sum()) < len(mask) for mask in masks)


def test_exports_and_copies_are_plain() -> None:
    tiny = tiny_run(recipe("two-views-resnet"))
    inside = {type(m).__module__ for m in tiny.updater.method.modules()}
    assert "unlabeled.ops.drop_path" in inside
    for network in (tiny.updater.method.exports()["backbone"].build(), copy.deepcopy(tiny.updater.method.backbone)):
        assert "unlabeled.ops.drop_path" not in {type(m).__module__ for m in network.modules()}
        assert repr(network) == repr(tiny.updater.method.backbone)
