"""Random depth and dropout are drawn for the global batch, whatever the rows of a network are.

The battery knows them too, by a variant of fine-tuning: resumes, micro-batches, a view of one row per image.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from processes import run_processes
from tiny import DROPS, tiny_recipe, tiny_run

LAYOUT = "train.channels_last=false"
VIT = f"backbone={DROPS}"
RESNET = "backbone={name: resnet18, stem: cifar, options: {drop_path_rate: 0.5, drop_rate: 0.3}}"
SWIN = (  # four windows of an image, one behind another, are rows of the attention's dropout
    "backbone={name: swin_tiny_patch4_window7_224, options: {img_size: 16, patch_size: 2, window_size: 4, "
    "embed_dim: 8, depths: [2], num_heads: [1], proj_drop_rate: 0.3, drop_path_rate: 0.5}}"
)
CASES = {  # a view of four rows per image, two sizes of view together, two views, windows
    "rotations-vit": ("rotnet", "all", [VIT, "method.block=null"]),
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


def test_two_micro_batches_are_one() -> None:
    found = []
    for accum in (1, 2):
        tiny = tiny_run(tiny_recipe("finetune", "drops", [LAYOUT, f"train.grad_accum={accum}"]), torch.float64)
        with torch.no_grad():
            tiny.updater.method.classifier.linear.weight.copy_(torch.linspace(-1, 1, 80).view(10, 8))
        terms, _, _ = tiny.updater._forward_backward(1, tiny.micros(1))
        grads = [p.grad.flatten() for p in tiny.updater.method.parameters() if p.grad is not None]
        found.append((sum(terms.values()), torch.cat(grads)))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_masks_differ_between_updates_views_and_layers() -> None:
    tiny = tiny_run(recipe("rotations-vit"))
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
